"""The config of an output: what must be as in the source, and whether its quantization section can be read.

A key of the source may not be lost or changed, as a model computes by it; but two spellings of one fact
(`global_head_dim` and `per_layer_config`, `torch_dtype` and `dtype`) are one.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from g4convert.errors import InputError
from g4convert.gemma4 import Architecture
from g4convert.inspection.declared_scheme import Declared, declared_in, section_of
from g4convert.report import Finding, Severity

__all__ = ["TRANSFORMERS_ONLY", "config_keys", "quantization_section", "read_architecture"]

_REPLACED: Final = {"quantization_config", "compression_config"}
_SPELLINGS: Final = ("per_layer_config", "global_head_dim", "num_global_key_value_heads")
"""Ways to say how wide full-attention layers are; whether they agree shows in the architecture."""
_WRITERS: Final = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}
"""Keys that say who wrote the file and how; in a text-only config, also which class reads it."""
_QUIET: Final = {"transformers_version", "_name_or_path"}
_CLASSES: Final = {"architectures", "model_type"}
_REMEDY: Final = "take the source's config.json and put the quantization_config of this one into it"
_MISSING: Final = object()
_ACTIVATIONS: Final = "set it to null if only weights were quantized; tensors cannot say so"
_FIX: Final = "`g4convert check DIR --fix` corrects it"

TRANSFORMERS_ONLY: Final = {"quantization_status", "compression_config"}
"""Subjects of findings about the quantization section that hinder no other engine."""


def config_keys(out: Mapping[str, Any], source: Mapping[str, Any], *, text_only: bool) -> Iterator[Finding]:
    """Keys of the source that the output lost or changed.

    Args:
        out: the output's config.
        source: the source's.
        text_only: the output is the decoder of a multimodal source, with that one's `text_config` as config.
    """
    if text_only:
        head = {"tie_word_embeddings": source.get("tie_word_embeddings", _MISSING)}
        section = source.get("text_config", {})
        source = {**section, **{key: value for key, value in head.items() if value is not _MISSING}}
    yield from _differences(out, source, "", _QUIET | _CLASSES if text_only else _QUIET)


def _differences(out: Mapping[str, Any], source: Mapping[str, Any], path: str, ignored: set[str]) -> Iterator[Finding]:
    for key, value in source.items():
        if key in _REPLACED or key in ignored:
            continue
        found = out.get(key, _MISSING)
        subject = f"{path}{key}"
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from _differences(found, value, f"{subject}.", _QUIET)
        elif found is _MISSING and (value is None or _said_otherwise(key, value, out)):
            found = "left out, as null means" if value is None else "said in another way"
            yield Finding("static.config", Severity.INFO, subject, found, _short(value))
        elif found is _MISSING:
            yield Finding("static.config", Severity.FAIL, subject, "lost", _short(value), _REMEDY)
        elif found != value:
            yield Finding("static.config", Severity.FAIL, subject, _short(found), _short(value), _REMEDY)
    for key in out.keys() - source.keys() - _REPLACED - _WRITERS - set(_SPELLINGS):
        if not ignored & _CLASSES:
            yield Finding("static.config", Severity.INFO, f"{path}{key}", _short(out[key]), "not in the source")


def _said_otherwise(key: str, value: object, out: Mapping[str, Any]) -> bool:
    if key in _SPELLINGS:
        return any(other in out for other in _SPELLINGS)
    renamed = {"torch_dtype": "dtype", "dtype": "torch_dtype"}.get(key)
    return renamed is not None and out.get(renamed) == value


def read_architecture(out: Mapping[str, Any], source: Architecture | None) -> tuple[Architecture, tuple[Finding, ...]]:
    """The architecture that names and shapes are checked against, and how the output's own differs.

    Args:
        out: the output's config.
        source: the source's architecture, which has the last word.

    Raises:
        InputError: without a source, a config that describes no Gemma 4.
    """
    try:
        own = Architecture.from_config(out)
    except InputError as error:
        if source is None:
            raise
        lines = error.offenders or (error.message,)
        return source, tuple(
            Finding("static.architecture", Severity.FAIL, *_split(line), source.family, _REMEDY) for line in lines
        )
    if source is None:
        return own, ()
    wanted = source.text_only() if source.is_composite and not own.is_composite else source
    return wanted, tuple(_parts_that_differ(own, wanted))


def _split(line: str) -> tuple[str, str]:
    subject, _, found = line.partition(": ")
    return subject, found or line


def _parts_that_differ(own: Architecture, wanted: Architecture) -> Iterator[Finding]:
    if replace(own, dtype=wanted.dtype) == wanted:
        return
    parts = ("model_type", "vision", "audio", "drafter", "tied_embeddings")
    text_parts = ("vocab_size", "hidden_size", "heads", "ple", "experts", "attention_bias")
    pairs: list[tuple[str, object, object]] = [
        *((part, getattr(own, part), getattr(wanted, part)) for part in parts),
        *((f"text.{part}", getattr(own.text, part), getattr(wanted.text, part)) for part in text_parts),
        ("text.layers", len(own.text.layers), len(wanted.text.layers)),
        *((f"text.layers.{n}", *pair) for n, pair in enumerate(zip(own.text.layers, wanted.text.layers, strict=False))),
    ]
    for part, found, expected in pairs:
        if found != expected:
            yield Finding("static.architecture", Severity.FAIL, part, _short(found), _short(expected), _REMEDY)


def quantization_section(
    out: Mapping[str, Any], *, packs: bool, engines: Collection[str]
) -> tuple[Declared | None, tuple[Finding, ...]]:
    """What the config says of the packed modules, and what is wrong with saying it so.

    Args:
        out: the output's config.
        packs: whether any tensor is packed.
        engines: what must load it: what only one of the others does not read warns.
    """
    declared = declared_in(out)
    code = "static.quantization_config"
    if declared is None or (declared.method is None and not declared.groups):
        if not packs:
            return None, ()
        remedy = f"{_FIX}: without it every loader takes packed words for unknown tensors"
        found = "missing" if declared is None else "no quant_method"
        return None, (Finding(code, Severity.FAIL, "quantization_config", found, "compressed-tensors", remedy),)
    findings = [Finding(code, Severity.FAIL, *_split(f"quantization_config: {fault}"), "") for fault in declared.faults]
    if declared.method != "compressed-tensors":
        found = f"quant_method {declared.method!r}"
        findings.append(Finding(code, Severity.FAIL, "quantization_config", found, "compressed-tensors"))
    if not declared.groups:
        findings.append(Finding(code, Severity.FAIL, "config_groups", "none", "a scheme and what it is for"))
    findings.extend(_refused_by_loaders(out))
    if packs and declared.method == "compressed-tensors":
        severity = Severity.FAIL if "transformers" in engines else Severity.WARN
        findings.extend(_unread_by_transformers(out, severity))
    return declared, tuple(findings)


def _refused_by_loaders(out: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that compressed-tensors knows, but W4A16 loaders do not take."""
    _, section = section_of(out)
    groups = section.get("config_groups") if isinstance(section, Mapping) else None
    for name, group in (groups if isinstance(groups, Mapping) else {}).items():
        if not isinstance(group, Mapping):
            continue
        subject, code = f"config_groups.{name}", "static.scheme"
        weights = group.get("weights")
        if weights is None:
            found = "no weights: transformers loads nothing packed, vLLM stops"
            yield Finding(code, Severity.FAIL, subject, found, "how they are packed", _FIX)
        weights = weights if isinstance(weights, Mapping) else {}
        form = group.get("format") or section.get("format")
        if form != "pack-quantized":
            yield Finding(code, Severity.FAIL, subject, f"format {form!r}", "pack-quantized")
        if weights.get("actorder") in {"group", "dynamic", True}:
            found = f"actorder {weights['actorder']!r}"
            yield Finding(code, Severity.FAIL, subject, found, "null, weight or static: vLLM refuses the others")
        if weights.get("dynamic"):
            yield Finding(code, Severity.FAIL, subject, "dynamic weights", "static ones")
        for key in ("input_activations", "output_activations"):
            if group.get(key) is not None:
                found = f"{key}: quantized activations"
                yield Finding(code, Severity.FAIL, subject, found, "weights only", _ACTIVATIONS)
        if weights.get("symmetric") is False:
            found = "asymmetric: transformers loads it only with dequantize=True"
            yield Finding(code, Severity.WARN, subject, found, "symmetric")


def _unread_by_transformers(out: Mapping[str, Any], severity: Severity) -> Iterator[Finding]:
    """What vLLM and SGLang do without, but transformers reads, or else leaves every packed module random."""
    code, (place, section) = "static.quantization_config", section_of(out)
    status = section.get("quantization_status") if isinstance(section, Mapping) else None
    if status != "compressed":
        found = f"{_short(status)}: transformers takes weights for dense ones and leaves them random"
        yield Finding(code, severity, "quantization_status", found, "'compressed'", _FIX)
    if place.endswith("compression_config"):
        found = "the section has this name: transformers does not read it and leaves packed weights random"
        yield Finding(code, severity, "compression_config", found, "quantization_config", _FIX)


def _short(value: object) -> str:
    """A value in at most 80 characters; booleans and null as JSON has them."""
    constants = {True: "true", False: "false", None: "null"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
