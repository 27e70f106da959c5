"""Checks keys of a quantization section that describe no packed weight: cache, transforms, sparsity and ratio."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from g4convert.checkpoint.arguments import refusal_reasons, type_faults
from g4convert.checkpoint.files import part
from g4convert.verification.static.config import short

_COMPUTED: Final = {"input", "output", "k_cache", "q_attn"}
"""Places of transforms that weights cannot have in them."""
_ALL: Final = ("transformers", "vllm", "sglang")

HINDERED: Final[Mapping[str, Collection[str]]] = {
    "sparsity_config": ("vllm",),
    "sparsity_config: form": ("vllm", "sglang"),
    "transform_config": ("transformers", "sglang"),
    "transform_config: form": ("vllm",),
    "global_compression_ratio": ("transformers",),
    "kv_cache_scheme": _ALL,
    "kv_cache_scheme: arguments": ("transformers",),
    "kv_cache_scheme: form": ("vllm",),
}
"""Engines that fail, by the subject of the fault."""


def extras(section: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield faults of the keys beside the packing: subject, text and the right value."""
    if part(section, "sparsity_config").get("targets"):
        yield "sparsity_config", "targets of sparsity: vLLM stops with an error", "none"
    sparsity, transforms = section.get("sparsity_config"), section.get("transform_config")
    if sparsity and not (isinstance(sparsity, Mapping) and isinstance(sparsity.get("format"), str)):
        yield "sparsity_config: form", f"{short(sparsity)}: vLLM and SGLang stop, as it names no format", "null"
    if transforms and not (isinstance(transforms, Mapping) and isinstance(transforms.get("config_groups"), Mapping)):
        yield "transform_config: form", f"{short(transforms)}: vLLM stops, as it holds no transforms", "null"
    if _transforms_inputs(part(section, "transform_config")):
        text = "transforms of inputs or outputs: transformers and SGLang leave them out, so values are wrong"
        yield "transform_config", text, "none, or transforms that are in the weights"
    ratio = section.get("global_compression_ratio")
    if ratio is not None and not _is_number(ratio):
        yield "global_compression_ratio", f"{short(ratio)}: transformers stops, as it is no number", "a number, or null"
    if (cache := section.get("kv_cache_scheme")) is not None:
        yield from _check_cache(cache)


def unusable(section: Mapping[str, Any]) -> set[str]:
    """Return the keys with a value that some engine stops at; without them, weights and answers are the same.

    Transforms of inputs are not among them: weights are stored for them.
    """
    return {subject.partition(":")[0] for subject, *_ in extras(section) if subject != "transform_config"}


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        return False
    return True


def _check_cache(cache: object) -> Iterator[tuple[str, str, str]]:
    """Yield what is wrong with `kv_cache_scheme`.

    transformers reads it with compressed-tensors' class. vLLM 0.33 takes FP8 alone (`compressed_tensors.py:1117`),
    with one scale for each tensor or head (:1129), and symmetric; SGLang 0.5.23 leaves any other scheme out.
    """
    if not isinstance(cache, Mapping):
        yield "kv_cache_scheme", f"{short(cache)}: no engine starts with it", "a scheme that is written out, or null"
        return
    if faults := [*refusal_reasons(cache), *type_faults(cache)]:
        yield "kv_cache_scheme: arguments", f"{faults[0]}: transformers stops", "arguments of compressed-tensors"
    if why := _cache_misfit(cache):
        expected = "num_bits 8, type float, strategy tensor or attn_head, symmetric"
        yield "kv_cache_scheme: form", f"{why}, at which vLLM 0.33 stops", expected


def _cache_misfit(cache: Mapping[str, Any]) -> str:
    """Return the part of a cache's scheme that vLLM does not take; empty if it takes the scheme."""
    if cache.get("type") != "float" or cache.get("num_bits") != 8:
        return f"num_bits {short(cache.get('num_bits'))}, type {short(cache.get('type'))}"
    if not any(cache.get("strategy") == one for one in ("tensor", "attn_head")):
        return f"strategy {short(cache.get('strategy'))}"
    return "" if cache.get("symmetric") else f"symmetric {short(cache.get('symmetric'))}"


def _transforms_inputs(transforms: Mapping[str, Any]) -> bool:
    """Return whether a section has transforms that an engine must compute, beside those that weights have in them."""
    schemes = part(transforms, "config_groups").values()
    applied = [scheme.get("apply") for scheme in schemes if isinstance(scheme, Mapping)]
    uses = [use for uses in applied if isinstance(uses, list) for use in uses if isinstance(use, Mapping)]
    return any(use.get("location") in _COMPUTED for use in uses)
