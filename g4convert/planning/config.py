"""The output's config.json: the source's keys, the model class, and a `quantization_config` for packed weights."""

from collections.abc import Mapping
from typing import Any, Final

from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.sections import SECTIONS
from g4convert.engines.weights import Weights
from g4convert.gemma4.architecture import WITHOUT_PARTS
from g4convert.planning.plan import Plan

FORMAT_VERSION: Final = "0.20.0"
"""The compressed-tensors release whose format is written."""

_FROM_WHOLE_CONFIG: Final = (
    "dtype",
    "torch_dtype",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
)
_UNIFIED_DEFAULTS: Final[Mapping[str, object]] = {
    "sliding_window": 1024,
    "max_position_embeddings": 262_144,
    "use_bidirectional_attention": "vision",
}
"""Defaults of transformers' class for a unified decoder that its class for other decoders has in other values."""


def make_output_config(source: Mapping[str, Any], plan: Plan, weights: Weights) -> dict[str, Any]:
    """Return the content of the output's config.json: the source's keys, the class, and `quantization_config`.

    A text-only output of a composite source gets the source's `text_config` and the text-only class. Values that a
    unified decoder leaves to its defaults are written out, as the defaults of that class differ.

    Args:
        source: the source's config.json.
        plan: plan of the output.
        weights: the output's weights as engines load them, with their `targets` and `ignore` lists.
    """
    config = {key: value for key, value in source.items() if key not in SECTIONS}
    if plan.is_decoder_of:
        whole, config = config, dict(config["text_config"])
        config = {"architectures": [], **{k: whole[k] for k in _FROM_WHOLE_CONFIG if k in whole}, **config}
        config["tie_word_embeddings"] = plan.architecture.tied_embeddings
    if plan.architecture.model_type != plan.inventory.architecture.model_type:
        if plan.inventory.architecture.is_unified:
            config = {**_UNIFIED_DEFAULTS, **config, **WITHOUT_PARTS}
        config["model_type"] = plan.architecture.model_type
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {k: v for k, v in config["text_config"].items() if k not in SECTIONS}
    if source.get("tie_word_embeddings") is not False and not plan.architecture.tied_embeddings:
        config |= _untie_embeddings(config)
    config["architectures"] = [plan.architecture.class_name]
    if weights.packed:
        config["quantization_config"] = make_quantization_config(weights)
    return config


def _untie_embeddings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tie_word_embeddings: False` for the top level, which vLLM reads, and for an existing `text_config`."""
    text = config.get("text_config")
    below = {"text_config": {**text, "tie_word_embeddings": False}} if isinstance(text, dict) else {}
    return {"tie_word_embeddings": False, **below}


def make_quantization_config(weights: Weights) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint, in the form that compressed-tensors 0.20 reads.

    Args:
        weights: a checkpoint with the lists of `engines.ignore.with_lists`.
    """
    groups = {group.name: group for group in weights.groups.values()}
    return {
        "config_groups": {name: _group_to_dict(group) for name, group in groups.items()},
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": [*weights.ignore],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": FORMAT_VERSION,
    }


def _group_to_dict(group: DeclaredGroup) -> dict[str, Any]:
    return {
        "format": group.format,
        "input_activations": None,
        "output_activations": None,
        "targets": [*group.targets],
        "weights": {
            "actorder": None,
            "block_structure": None,
            "dynamic": False,
            "group_size": group.group_size,
            "num_bits": group.num_bits,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
            "strategy": group.strategy,
            "symmetric": group.symmetric,
            "type": group.kind,
        },
    }
