"""What libraries say while a model loads: errors become reasons a person can act on, noise is kept off the log.

Called by ``loader``.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from emb_model_provider.errors import LoadError, LoadReason
from shard.weights import hostile_pickle

_ATTENTION_ADVICE: Final = (
    " Its files ask for it: take attn_implementation out of config.json or sentence_bert_config.json in a copy of the"
    " model and serve that; its vectors are the same with any implementation."
)


@contextmanager
def reasons(directory: Path) -> Iterator[None]:
    """Turn what libraries raise into a reason a person can act on; what is not listed goes through as it is."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoadError(
            LoadReason.OUT_OF_MEMORY,
            f"{directory} does not fit into memory: use a lower precision, another device, or fewer models ({error})",
        ) from error
    except ImportError as error:
        advice = _ATTENTION_ADVICE if "FlashAttention" in str(error) else ""
        raise LoadError(LoadReason.PACKAGE_MISSING, f"{directory} needs a package: {error}{advice}") from error
    except pickle.UnpicklingError as error:
        raise hostile_pickle(directory / "pytorch_model.bin") from error
    except SafetensorError as error:
        raise LoadError(LoadReason.WRONG_WEIGHTS, f"the weights in {directory} cannot be read: {error}") from error
    except OSError as error:
        raise LoadError(LoadReason.INCOMPLETE_DOWNLOAD, f"{directory} cannot be read: {error}") from error
    except RuntimeError as error:
        raise LoadError(
            LoadReason.WRONG_WEIGHTS, f"the weights in {directory} do not make a working model: {error}"
        ) from error
    except (ValueError, KeyError) as error:
        raise LoadError(
            LoadReason.UNSUPPORTED_MODEL, f"{directory} holds a model that cannot be served: {error}"
        ) from error
    except Exception:
        raise
    except BaseException as error:  # a panic of the tokenizer's Rust, or sys.exit() in the model's own code
        raise LoadError(
            LoadReason.UNSUPPORTED_MODEL,
            f"{directory} holds a model that cannot be served: {type(error).__name__}: {error}",
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and transformers' report of unused weights off the log; ``check_filled`` reads that report."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # What int8 always does, once per layer and batch; and advice to install what would fetch code from a hub.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_news)
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "inputs will be cast from" not in message and "kernels-community" not in message
