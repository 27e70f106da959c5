"""Checks of an output's quantization section: loaders can read it, and none of them reads it in another way."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from g4convert.checkpoint.declared import Declared, DeclaredGroup
from g4convert.checkpoint.files import part
from g4convert.checkpoint.sections import section_in, section_of
from g4convert.gemma4 import Architecture
from g4convert.report import Detail, Finding, Severity
from g4convert.verification.static.config import short
from g4convert.verification.static.extras import HINDERED, extras

PACKED: Final = "pack-quantized"
_GROUP_KEYS: Final = ("targets", "weights", "input_activations", "output_activations", "format")
_ACTIVATIONS: Final = "set it to null if only weights were quantized; tensors cannot say so"

_PLACES: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "compression_config": (
        ("transformers",),
        "the section has this name: transformers does not read it and leaves packed weights random",
    ),
    "text_config.quantization_config": (
        ("sglang",),
        "the section is there: SGLang finds no method and builds everything plain, so packed weights are left aside",
    ),
    "text_config.compression_config": (
        ("transformers", "vllm", "sglang"),
        "the section is there: no engine reads it; transformers leaves packed weights random, vLLM stops",
    ),
}
"""Wrong places of the quantization section, each with the engines that cannot read it there and the consequence."""

HINDERS: Final[Mapping[str, Collection[str]]] = {
    "quantization_status": ("transformers",),
    **HINDERED,
    "format": ("vllm", "sglang"),
    "format: null": ("transformers",),
    "config_groups: preset": ("vllm", "sglang"),
    "config_groups: keys": ("transformers",),
    **{place: engines for place, (engines, _) in _PLACES.items()},
}
"""Engines that fail, by the subject of the finding, for faults of the section that only some engines mind."""


def section_faults(
    out: Mapping[str, Any], declared: Declared | None, *, packs: bool, engines: Collection[str]
) -> Iterator[Finding]:
    """Yield findings on faults of the quantization section.

    Args:
        out: the output's config.
        declared: the config's quantization section; None if it has none.
        packs: whether any tensor is packed.
        engines: engines that must load the output; a fault that only other engines mind warns.
    """
    code = "static.quantization_config"
    if declared is None or declared.is_empty:
        if packs:
            remedy = "without it every loader takes packed words for unknown tensors"
            found = "missing" if declared is None else "no quant_method"
            yield Finding(code, Severity.FAIL, "quantization_config", found, "compressed-tensors", remedy)
        return
    yield from (Finding(code, Severity.FAIL, "quantization_config", fault, "") for fault in declared.faults)
    if declared.method != "compressed-tensors":
        found = f"quant_method {declared.method!r}"
        yield Finding(code, Severity.FAIL, "quantization_config", found, "compressed-tensors")
    if not declared.groups:
        yield Finding(code, Severity.FAIL, "config_groups", "none", "a scheme and what it is for")
    quantizing = {group.name: group for group in declared.groups if group.static_int8 or group.dynamic}
    yield from _refused_by_loaders(out, quantizing)
    yield from _check_activations(quantizing.values(), engines)
    if packs and declared.method == "compressed-tensors":
        yield from _find_unread(out, engines)


def _check_activations(groups: Iterable[DeclaredGroup], engines: Collection[str]) -> Iterator[Finding]:
    """Yield findings on quantized activations that only some engines know.

    transformers rounds inputs that are quantized as they come. vLLM 0.33 has schemes for int4 and int8 per token or
    group (`CompressedTensorsWNA8Int`, `WNA4Int`), whose kernels, but for Humming's, leave inputs as they are.
    """
    for group in groups:
        detail, reading = Detail.ACTIVATIONS, {"transformers", "vllm"}
        if group.static_int8:
            found = "static int8 inputs and outputs: SGLang has no such scheme"
        elif group.dynamic == "int":
            found = "inputs quantized as they come: SGLang 0.5.23 has no such scheme"
        else:
            found = (
                f"inputs quantized as they come, to {group.dynamic}: vLLM 0.33 and SGLang 0.5.23 have no such scheme"
            )
            detail, reading = Detail.INPUTS, {"transformers"}
        severity = Severity.WARN if set(engines) <= reading else Severity.FAIL
        subject = f"config_groups.{group.name}"
        yield Finding("static.scheme", severity, subject, found, "weights only", detail=detail)


def _refused_by_loaders(out: Mapping[str, Any], quantizing: Collection[str]) -> Iterator[Finding]:
    """Yield findings on values that compressed-tensors knows but W4A16 loaders refuse."""
    for name, group in part(section_in(out), "config_groups").items():
        if not isinstance(group, Mapping):
            continue
        subject, code = f"config_groups.{name}", "static.scheme"
        weights = part(group, "weights")
        if group.get("weights") is None:
            found = "no weights: transformers loads nothing packed, vLLM stops"
            yield Finding(code, Severity.FAIL, subject, found, "how they are packed")
        form = group.get("format")
        if form not in {None, PACKED}:
            yield Finding(code, Severity.FAIL, subject, f"format {form!r}", PACKED)
        if weights.get("actorder") in {"group", "dynamic", True}:
            found = f"actorder {weights['actorder']!r}"
            expected, remedy = (
                "null, weight or static: vLLM refuses the others",
                "quantize again with `actorder: weight`",
            )
            yield Finding(code, Severity.FAIL, subject, found, expected, remedy, detail=Detail.ORDER)
        if weights.get("dynamic"):
            yield Finding(code, Severity.FAIL, subject, "dynamic weights", "static ones")
        for key in ("input_activations", "output_activations"):
            if group.get(key) is not None and name not in quantizing:
                found = f"{key}: quantized activations"
                yield Finding(code, Severity.FAIL, subject, found, "weights only", _ACTIVATIONS)
        if weights.get("symmetric") is False:
            found = "asymmetric: transformers from 5.23 on loads it only with dequantize=True"
            yield Finding(code, Severity.WARN, subject, found, "symmetric", detail=Detail.ASYMMETRIC)


def cache_scheme(out: Mapping[str, Any], architecture: Architecture) -> Iterator[Finding]:
    """Warn of a quantized key and value cache that transformers before 5.24 cannot set up: layers differ in heads."""
    scheme = section_in(out).get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and len({(one.head_dim, one.kv_heads) for one in architecture.text.layers}) > 1:
        found = "a quantized key and value cache: transformers before 5.24 raises, as layers differ in their heads"
        yield Finding("static.cache_scales", Severity.WARN, "kv_cache_scheme", found, "none, or transformers 5.24")


def _find_unread(out: Mapping[str, Any], engines: Collection[str]) -> Iterator[Finding]:
    """Yield findings on keys and places that only some engines read; a wrong one makes them lose packed weights."""
    (place, _), section = section_of(out), section_in(out)
    status = section.get("quantization_status")
    unread: list[tuple[str, str, str]] = []
    if status != "compressed":
        text = f"{short(status)}: transformers takes weights for dense ones and leaves them random"
        unread.append(("quantization_status", text, "'compressed'"))
    if place in _PLACES:
        unread.append((place, _PLACES[place][1], "quantization_config, at the top"))
    unread += [*extras(section), *formats(out), *_group_faults(section)]
    for subject, text, expected in unread:
        severity = Severity.WARN if set(engines).isdisjoint(HINDERS[subject]) else Severity.FAIL
        yield Finding("static.quantization_config", severity, subject, text, expected)


def formats(out: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield faults of the format at the top of a quantization section: subject, text and the right value.

    vLLM and SGLang take it for groups that have none of their own, and stop at anything but `pack-quantized`.
    transformers checks that it is text, and infers a format that the group lacks from the group's scheme.
    """
    section = section_in(out)
    groups, stated = part(section, "config_groups"), section.get("format")
    lacking = [name for name, one in groups.items() if isinstance(one, Mapping) and one.get("format") is None]
    if lacking and stated != PACKED:
        where = f"config_groups.{lacking[0]} has none of its own"
        text = f"{short(stated) if 'format' in section else 'missing'} at the top, and {where}: vLLM and SGLang stop"
        yield "format", text, repr(PACKED)
    if "format" in section and stated is None:
        yield "format: null", "transformers stops at null", f"{PACKED!r}, or no such key"


def _group_faults(section: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield faults in the form of config groups: subject, text and the right value.

    transformers takes the name of a preset for a scheme, and refuses keys that compressed-tensors does not know.
    """
    groups = part(section, "config_groups")
    if presets := [name for name, group in groups.items() if isinstance(group, list)]:
        text = f"{', '.join(presets)}: a preset by its name, at which vLLM and SGLang stop"
        yield "config_groups: preset", text, "a scheme that is written out"
    strange = [
        key for group in groups.values() if isinstance(group, Mapping) for key in group if key not in _GROUP_KEYS
    ]
    if strange:
        text = f"{short(strange[0])} in a group: transformers stops at keys that compressed-tensors does not know"
        yield "config_groups: keys", text, f"only {', '.join(_GROUP_KEYS)}"
