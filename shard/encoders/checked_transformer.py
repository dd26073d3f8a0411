"""A transformer whose weights are complete, in the precision of the settings. Used by ``modules``.

sentence-transformers' own would leave missing weights random and pick the number format of the file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.modules.transformer import TransformerTask
from torch import nn
from transformers import CONFIG_MAPPING, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, core_model_loading
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from emb_model_provider.errors import LoadError, unsupported
from shard.device import ComputePlan
from shard.encoders.splade import LanguageHead, split_language_model
from shard.encoders.text_options import check_length
from shard.encoders.tokenizer_failures import naming_failures
from shard.model_files.converted_weights import convert_once
from shard.model_files.weights import TAKE_PLAIN, check_filled, check_unscaled, find_checkpoint

#: What a model's files may ask of its loading and is decided here: how much is checked and, by the precision in the
#: settings, in what format.
_OUR_ARGUMENTS: Final = (
    "dtype", "torch_dtype", "quantization_config", "device_map", "ignore_mismatched_sizes", "output_loading_info",
)  # fmt: skip
_DPR_OF_PASSAGES: Final = "DPRContextEncoder"
#: Where a processor multiplies in bf16, bitsandbytes packs a matrix of 4 bit by so many outputs at its first use.
_PACKED_OUTPUTS: Final = 32


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load one directory."""

    plan: ComputePlan
    trust_remote_code: bool
    cache_directory: Path

    @property
    def local(self) -> dict[str, Any]:
        """What every library is told that loads a part: ask no network, and whether the model's own code may run."""
        return {"local_files_only": True, "trust_remote_code": self.trust_remote_code}

    def for_model(self, *, needs_pooler: bool) -> dict[str, Any]:
        """Return what ``CheckedTransformer`` takes among its ``model_kwargs``."""
        return {"emb_options": self, "emb_needs_pooler": needs_pooler}


class CheckedTransformer(Transformer):
    """A ``Transformer`` whose weights are complete or which is not made at all.

    Of a masked language model it is the transformer alone, with ``language_head`` beside it.
    """

    language_head: LanguageHead

    def __init__(self, model_name_or_path: str, **arguments: Any) -> None:  # noqa: ANN401 - handed on as they are
        check_length(arguments.get("max_seq_length"))
        with naming_failures(model_name_or_path, arguments.get("processor_kwargs") or {}):
            super().__init__(model_name_or_path, **arguments)

    def _load_config(
        self, model_name_or_path: str, backend: str, config_kwargs: dict[str, Any]
    ) -> tuple[PretrainedConfig, bool]:
        try:
            config: tuple[PretrainedConfig, bool] = super()._load_config(model_name_or_path, backend, config_kwargs)
        except (StrictDataclassError, AttributeError, TypeError) as error:
            raise unsupported(
                f"transformers {version('transformers')} cannot read its config.json: {' '.join(str(error).split())}"
            ) from error
        return config

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: TransformerTask,
        config: PretrainedConfig,
        backend: str,
        is_peft_model: bool,  # noqa: FBT001 - the base class calls it by position
        **model_kwargs: Any,  # noqa: ANN401 - handed on to transformers as they are
    ) -> PreTrainedModel:
        options: LoadOptions = model_kwargs.pop("emb_options")
        needs_pooler: bool = model_kwargs.pop("emb_needs_pooler")
        for name in _OUR_ARGUMENTS:
            model_kwargs.pop(name, None)
        _check_kind(config)
        _check_quantised(config, options.plan)
        folder = Path(model_name_or_path, model_kwargs.get("subfolder") or "")
        source = folder
        checkpoint = find_checkpoint(folder)
        if checkpoint.pickled and options.plan.on_cpu:
            source = convert_once(checkpoint, options.cache_directory) or folder
        if source != folder:
            model_kwargs["subfolder"] = ""
        else:
            source = Path(model_name_or_path)
        if not needs_pooler and _has_optional_pooler(config):
            model_kwargs["add_pooling_layer"] = False
        with raising_what_fails():
            loaded: Any = super()._load_model(  # a pair, because of output_loading_info
                str(source),
                transformer_task,
                config,
                backend,
                is_peft_model,
                **model_kwargs,
                **_precision_arguments(options.plan),
                ignore_mismatched_sizes=True,  # and told by name below; transformers tells of them in its report alone
                output_loading_info=True,
            )
        if not isinstance(loaded, tuple):
            raise _loads_itself(loaded, config)
        model: PreTrainedModel = loaded[0]
        mismatched = [f"{name} {tuple(has)} for {tuple(needs)}" for name, has, needs in loaded[1]["mismatched_keys"]]
        check_filled(loaded[1]["missing_keys"], mismatched, folder, needs_pooler=needs_pooler)
        check_unscaled(loaded[1]["unexpected_keys"], folder)
        if options.plan.is_saved:
            _check_saved(model)
        if options.plan.storage == "nf4" and options.plan.on_cpu:
            _leave_unpacked(model)
        if transformer_task == "fill-mask":
            model, self.language_head = split_language_model(model)
        return model


@contextmanager
def raising_what_fails() -> Iterator[None]:
    """Have transformers raise what fails while it converts a weight, as too little memory of a card is.

    By itself it goes on with the next weight, and in the end tells to look at a report, which nobody is shown.
    """
    usual = core_model_loading.log_conversion_errors
    core_model_loading.log_conversion_errors = _raise_at_once
    try:
        yield
    finally:
        core_model_loading.log_conversion_errors = usual


@contextmanager
def _raise_at_once(*_weight: object, **_operation: object) -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise
    except Exception as error:  # whatever it is, it comes of these weights
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _loads_itself(model: object, config: PretrainedConfig) -> LoadError:
    """Return the refusal of own code that has a loading of its own, which says nothing of weights that are missing."""
    way_out = (
        f". transformers {version('transformers')} has a class for {config.model_type}, too: take auto_map out of "
        "config.json in a copy of the model and serve that"
        if config.model_type in CONFIG_MAPPING
        else ""
    )
    return unsupported(
        f"its own code ({type(model).__name__}) loads its weights by itself and does not tell whether all of them were "
        f"there{way_out}"
    )


def _check_kind(config: PretrainedConfig) -> None:
    """Raise ``LoadError`` for weights of a class in whose place transformers makes another, without any."""
    if _DPR_OF_PASSAGES in (config.architectures or ()):
        raise unsupported(
            "it is DPR's encoder of passages, and transformers takes every model of its type for one of questions. "
            "Take it as sentence-transformers has it (sentence-transformers/facebook-dpr-ctx_encoder-single-nq-base "
            "or facebook-dpr-ctx_encoder-multiset-base)"
        )


def _check_quantised(config: PretrainedConfig, plan: ComputePlan) -> None:
    """Raise ``LoadError`` for weights that transformers would take for plain ones, or would quantise once more."""
    said: object = getattr(config, "quantization_config", None)
    if not isinstance(said, Mapping) or plan.is_saved:
        return
    method = said.get("quant_method")
    if method == "bitsandbytes":  # and neither 4 nor 8 bit: left over, of weights that are plain
        return
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        how = f"by {method}" if method else "in a way that its config.json does not name, as MLX's are"
        raise unsupported(f"its weights are quantised {how}, which transformers does not read. {TAKE_PLAIN}")
    if plan.uses_bitsandbytes:
        raise unsupported(f'its weights are quantised already, by {method}: set "precision" to auto. {TAKE_PLAIN}')


def _precision_arguments(plan: ComputePlan) -> dict[str, Any]:
    # 16-bit storage starts from fp32, mapped: storage16 narrows the large matrices and nothing else.
    compute = getattr(torch, plan.compute)
    if not plan.uses_bitsandbytes:
        return {"dtype": compute}
    if plan.is_saved:  # the files say the rest
        return {"dtype": compute, "device_map": {"": plan.device}}
    wanted: dict[str, Any] = {"load_in_8bit": True}
    if plan.storage == "nf4":
        wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
    quantization = BitsAndBytesConfig(**wanted)  # type: ignore[no-untyped-call]
    return {"dtype": compute, "quantization_config": quantization, "device_map": {"": plan.device}}


def _check_saved(model: PreTrainedModel) -> None:
    """Raise ``LoadError`` for plain weights of which config.json says that bitsandbytes has saved them."""
    for module in model.modules():
        is_narrow = isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes.")
        if is_narrow and type(module.weight) is nn.Parameter:
            raise unsupported(
                "its config.json says that bitsandbytes has saved its weights in 4 or 8 bit, and they are plain, as "
                "those of a model that was trained so: take quantization_config out of config.json in a copy of the "
                "model and serve that"
            )


def _leave_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing the matrices that it cannot pack; these it multiplies as on other processors."""
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        linear: Any = module
        # Each row has scales of its own there, so that none of its blocks may reach into the next row.
        if linear.out_features % _PACKED_OUTPUTS or linear.in_features % linear.weight.quant_state.blocksize:
            linear.support_avx512bf16_for_cpu = False


def _has_optional_pooler(config: PretrainedConfig) -> bool:
    if getattr(config, "auto_map", None) or type(config) not in MODEL_MAPPING:
        return False
    kind: Any = MODEL_MAPPING[type(config)]  # a class, or for a few families a tuple of them
    return isinstance(kind, type) and "add_pooling_layer" in inspect.signature(kind).parameters
