"""What libraries say while a model loads: errors become reasons a person can act on, noise is kept off the log.

Called by ``loader``.
"""

from __future__ import annotations

import logging
import pickle
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from emb_model_provider.errors import LoadError, LoadReason, RequestError
from shard.encoder import FatalDeviceError
from shard.memory import advice_of_shortage, ran_out
from shard.model_files.weights import TAKE_PLAIN, hostile_pickle

#: What torch says of an embedding on the CPU.
_BEYOND_A_TABLE: Final = "index out of range in self"
#: What torch says of a product of two number formats, as DeBERTa's first version makes in 16 bit, and of a step that it
#: has for wider formats alone.
_WRONG_FORMATS: Final = re.compile("expected scalar type|(to|must) have the same dtype|not implemented for '(Half|BF)")
#: Modules of models: those of transformers, and those that come with a model.
_CODE_OF_MODELS: Final = ("transformers.models.", "transformers_modules.")
#: Of a card; where one of its libraries fails, torch makes a plain ``RuntimeError`` of it.
_OF_A_CARD: Final = "CUDA error"
_NO_CODE_FOR_CARD: Final = "no kernel image is available"
#: What bitsandbytes says behind a page of advice, with the cause in it, where its own library lacks or does not load;
#: and where it has one without the card's half.
_NO_LIBRARY: Final = re.compile(
    r"Original error: (.+)\n(?s:.*)Native code method attempted to call|"
    r"(Method '\w+' not available in CPU-only version of bitsandbytes)"
)
#: Under which sentence-transformers' modules keep and look for it.
_VECTOR_OF_A_TEXT: Final = "sentence_embedding"
#: What they say of a model whose output lacks what they look for, as DPR's encoders give one vector of their own.
_NO_OUTPUT: Final = re.compile(r"Could not access output key '(\w+)' via")
#: What transformers says of a model that it has no class for in a role, before it lists all that it has, hundreds.
_NO_CLASS: Final = re.compile(
    r"Unrecognized configuration class <class '[\w.]*?(\w+)'> for this kind of AutoModel: (\w+)"
)
_NO_POOLING: Final = "its modules.json names nothing that makes one vector of a text's tokens, such as Pooling"
_TALKATIVE: Final = (
    "bitsandbytes.autograd._functions",
    "bitsandbytes.backends.cpu.ops",
    "torch._subclasses.fake_tensor",
)
#: What int8 always does, once per layer and batch; advice to install what would fetch code from a hub; and, with all of
#: the stack, that a model cannot be captured (experts), which ``paths`` says in a line.
_NO_NEWS: Final = ("inputs will be cast from", "kernels-community", "failed while attempting to run meta for")
#: By what is in the library's sentence: GPTQ, AWQ, compressed-tensors and others have a package each.
_PACKAGE_ADVICE: Final = {
    "FlashAttention": " Its files ask for it: take attn_implementation out of config.json or sentence_bert_config.json"
    " in a copy of the model and serve that; its vectors are the same with any implementation.",
    "quantiz": f" Its weights are quantised. {TAKE_PLAIN}",
}


@contextmanager
def reasons(directory: Path, *, uses_bitsandbytes: bool = False) -> Iterator[None]:
    """Turn what libraries raise into a reason a person can act on; what is not listed goes through as it is."""
    try:
        yield
    except LoadError:
        raise
    except BaseException as error:
        reason = (
            _blame_card(error)
            if _is_of_a_card(error)
            else _reason(directory, error, uses_bitsandbytes=uses_bitsandbytes)
        )
        if reason is None:
            raise
        raise reason from error


def _reason(directory: Path, error: BaseException, *, uses_bitsandbytes: bool) -> LoadError | None:
    if isinstance(error, pickle.UnpicklingError):
        return hostile_pickle(directory / "pytorch_model.bin")
    if ran_out(error):
        advice = advice_of_shortage(error)
        said = str(error) or type(error).__name__
        return LoadError(LoadReason.OUT_OF_MEMORY, f"{directory} does not fit into memory: {advice} ({said})")
    match error:
        case ImportError() if not _is_in_code_of_model(error):
            advice = next((advice for word, advice in _PACKAGE_ADVICE.items() if word in str(error)), "")
            reason, sentence = LoadReason.PACKAGE_MISSING, f"{directory} needs a package: {error}{advice}"
        case SafetensorError():
            reason, sentence = LoadReason.WRONG_WEIGHTS, f"the weights in {directory} cannot be read: {error}"
        case OSError():
            reason, sentence = LoadReason.INCOMPLETE_DOWNLOAD, f"{directory} cannot be read: {error}"
        case RuntimeError():
            reason, sentence = _blame(directory, error, uses_bitsandbytes=uses_bitsandbytes)
        case IndexError() if str(error) == _BEYOND_A_TABLE:
            reason = LoadReason.WRONG_WEIGHTS
            sentence = (
                f"the weights in {directory} have no row for a token of its tokenizer or for a place of a text: the "
                "tokenizer, or the length in its files, is that of another model"
            )
        case ValueError() | KeyError() | RequestError() | AttributeError() if _is_of_the_model(error):
            reason, sentence = _refuse(directory, error)
        case Exception():
            return _blame_code(directory, error) if _is_in_code_of_model(error) else None
        case _:  # a panic of the tokenizer's Rust, or sys.exit() in the model's own code
            reason = LoadReason.UNSUPPORTED_MODEL
            sentence = f"{directory} holds a model that cannot be served: {type(error).__name__}: {error}"
    return LoadError(reason, sentence)


def _is_of_the_model(error: Exception) -> bool:
    """Tell a model without what is asked of it from a mistake of ours; a ``RequestError`` is of unreadable probes."""
    if isinstance(error, KeyError):
        return not _is_in_code_of_model(error)  # of which the key alone says nothing
    return not isinstance(error, AttributeError) or _NO_OUTPUT.match(str(error)) is not None


def _refuse(directory: Path, error: Exception) -> tuple[LoadReason, str]:
    what = _NO_POOLING if error.args == (_VECTOR_OF_A_TEXT,) else str(error)
    if found := _NO_OUTPUT.match(what):
        what = f"what it gives has no {found[1]}, from which its vectors or scores would be made"
    if found := _NO_CLASS.match(what):
        what = f"transformers {transformers.__version__} has no {found[2]} for its {found[1]}"
    return LoadReason.UNSUPPORTED_MODEL, f"{directory} holds a model that cannot be served: {what}"


def _blame(directory: Path, error: RuntimeError, *, uses_bitsandbytes: bool) -> tuple[LoadReason, str]:
    if found := _NO_LIBRARY.search(str(error)):
        sentence = f"{directory} needs bitsandbytes' own library, which cannot be used here ({found[1] or found[2]})"
        return LoadReason.PACKAGE_MISSING, f"{sentence}: python -m bitsandbytes says more, or choose another precision"
    has_wrong_format = _WRONG_FORMATS.search(str(error)) is not None
    if isinstance(error, NotImplementedError) and not has_wrong_format:
        return _refuse(directory, error)
    # Mamba's code multiplies by the packed bytes themselves.
    if has_wrong_format or (uses_bitsandbytes and _is_in_code_of_model(error)):
        sentence = f"{directory} holds a model whose own code does not compute in this precision ({error})"
        return LoadReason.UNSUPPORTED_MODEL, f"{sentence}: set its precision to fp32"
    return LoadReason.WRONG_WEIGHTS, f"the weights in {directory} do not make a working model: {error}"


def _is_in_code_of_model(error: Exception) -> bool:
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] != "transformers":
        return False  # a package is missing, and not what transformers has no more or not yet
    return bool(_places_in_code_of_model(error))


def _places_in_code_of_model(error: Exception) -> list[str]:
    """Return where the model's own code was when it failed; nothing where that had called ours, and ours fails."""
    places: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_CODE_OF_MODELS):
            places.append(f"{Path(frame.f_code.co_filename).name}, line {line}")
        elif module.startswith("shard."):  # a layer or an attention that we have put into it
            places.clear()
    return places


def _blame_code(directory: Path, error: Exception) -> LoadError:
    what = f"{type(error).__name__}: {error}; {_places_in_code_of_model(error)[-1]}"
    return LoadError(
        LoadReason.UNSUPPORTED_MODEL,
        f"{directory} holds a model whose own code fails ({what}): it may be written for another version of "
        f"transformers than {transformers.__version__}, or want more than a text",
    )


def _is_of_a_card(error: BaseException) -> bool:
    is_kind = isinstance(error, (RuntimeError, FatalDeviceError)) and _OF_A_CARD in str(error)
    return is_kind and not ran_out(error)


def _blame_card(error: BaseException) -> LoadError | None:
    """Return the reason where torch is of no use to this card; other faults may pass, and are none of the model's."""
    said = str(error).splitlines()[0]
    if _NO_CODE_FOR_CARD not in said:
        return None
    sentence = f"torch {torch.__version__} has no code for this card ({said}): install a build of torch that has it"
    return LoadError(LoadReason.NO_DEVICE, f"{sentence} (https://pytorch.org), or set the device to cpu")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and transformers' report of unused weights off the log; ``check_filled`` reads that report."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_is_news)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(part in message for part in _NO_NEWS)
