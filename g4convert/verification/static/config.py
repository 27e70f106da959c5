"""Checks of an output's config: the source's keys are unchanged, and loaders can read its quantization section.

No key of the source may be lost or changed, since the model computes by it. Two spellings of one fact
(`global_head_dim` and `per_layer_config`, `torch_dtype` and `dtype`) count as equal.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Final

from g4convert.checkpoint.declared import Declared
from g4convert.checkpoint.sections import SECTIONS, section_of
from g4convert.errors import InputError
from g4convert.gemma4 import Architecture
from g4convert.report import Detail, Finding, Severity

__all__ = [
    "HINDERS",
    "PACKED",
    "cache_scheme",
    "config_keys",
    "formats",
    "model_class",
    "read_architecture",
    "section_faults",
]

_SPELLINGS: Final = ("per_layer_config", "global_head_dim", "num_global_key_value_heads")
"""Alternative keys for the width of full-attention layers; `read_architecture` compares the resulting widths."""
_WRITERS: Final = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}
"""Keys that the writer of a config sets, and that are not reported if the source lacks them."""
_QUIET: Final = {"transformers_version", "_name_or_path"}
_CLASSES: Final = {"architectures", "model_type"}
_REMEDY: Final = "take the source's config.json and put the quantization_config of this one into it"
_MISSING: Final = object()
PACKED: Final = "pack-quantized"
_COMPUTED: Final = {"input", "output", "k_cache", "q_attn"}
"""Places of transforms that weights cannot have in them."""
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
    "sparsity_config": ("vllm",),
    "transform_config": ("transformers", "sglang"),
    "format": ("vllm", "sglang"),
    "format: null": ("transformers",),
    **{place: engines for place, (engines, _) in _PLACES.items()},
}
"""Engines that fail, by the subject of the finding, for faults of the section that only some engines mind."""


def config_keys(out: Mapping[str, Any], source: Mapping[str, Any], *, text_only: bool) -> Iterator[Finding]:
    """Yield findings on keys of the source that the output lost or changed.

    Args:
        out: the output's config.
        source: the source's config.
        text_only: the output is the decoder of a multimodal source; its config is the source's `text_config`.
    """
    untied = out.get("tie_word_embeddings") is False and source.get("tie_word_embeddings") is not False
    if text_only:
        head = {"tie_word_embeddings": source.get("tie_word_embeddings", _MISSING)}
        section = source.get("text_config", {})
        source = {**section, **{key: value for key, value in head.items() if value is not _MISSING}}
    yield from _differences(out, _untied(source) if untied else source, "", _QUIET | _CLASSES if text_only else _QUIET)


def _untied(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source's config with `tie_word_embeddings` false at every level that has the key."""
    text = source.get("text_config")
    below = {"text_config": _untied(text)} if isinstance(text, Mapping) else {}
    own = {"tie_word_embeddings": False} if "tie_word_embeddings" in source else {}
    return {**source, **own, **below}


def _differences(out: Mapping[str, Any], source: Mapping[str, Any], path: str, ignored: set[str]) -> Iterator[Finding]:
    for key, value in source.items():
        if key in SECTIONS or key in ignored or (key == "architectures" and not path):
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
    for key in out.keys() - source.keys() - SECTIONS - _WRITERS - set(_SPELLINGS):
        if not ignored & _CLASSES:
            yield Finding("static.config", Severity.INFO, f"{path}{key}", _short(out[key]), "not in the source")


def _said_otherwise(key: str, value: object, out: Mapping[str, Any]) -> bool:
    if key in _SPELLINGS:
        return any(other in out for other in _SPELLINGS)
    renamed = {"torch_dtype": "dtype", "dtype": "torch_dtype"}.get(key)
    return renamed is not None and out.get(renamed) == value


def read_architecture(out: Mapping[str, Any], source: Architecture | None) -> tuple[Architecture, tuple[Finding, ...]]:
    """Return the architecture to check names and shapes against, and findings on how the output's own differs.

    Args:
        out: the output's config.
        source: the source's architecture, which is returned where the two differ; None takes the output's.

    Raises:
        InputError: there is no source, and the config does not describe a Gemma 4 model.
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
    wanted = wanted if own.tied_embeddings else wanted.untied()  # then the output must have the source's head
    return wanted, tuple(_parts_that_differ(own, wanted))


def _split(line: str) -> tuple[str, str]:
    subject, _, found = line.partition(": ")
    return subject, found or line


def _parts_that_differ(found: object, expected: object, path: str = "") -> Iterator[Finding]:
    """Yield a finding for each value in which two architectures differ; the config's dtype is not compared."""
    if found == expected or path == "dtype":
        return
    if is_dataclass(found) and type(found) is type(expected):
        for field in fields(found):
            pair = getattr(found, field.name), getattr(expected, field.name)
            yield from _parts_that_differ(*pair, f"{path}.{field.name}".lstrip("."))
    elif isinstance(found, tuple) and isinstance(expected, tuple) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from _parts_that_differ(*pair, f"{path}.{number}")
    else:
        yield Finding("static.architecture", Severity.FAIL, path, _shown(found), _shown(expected), _REMEDY)


def _shown(part: object) -> str:
    """Describe a part of an architecture: the number of layers, or the value of any other part."""
    if isinstance(part, tuple):
        return f"{len(part)} of them"
    return _short(asdict(part) if is_dataclass(part) and not isinstance(part, type) else part)


def model_class(out: Mapping[str, Any], architecture: Architecture, engines: Collection[str]) -> Iterator[Finding]:
    """Check that `architectures` names the class of the model type: vLLM chooses the model's code by it."""
    found, wanted = out.get("architectures"), architecture.class_name
    code, right = "static.class", f"[{wanted!r}]"
    if found == [wanted]:
        yield Finding(code, Severity.PASS, "architectures", "the class of the model type", "")
    else:
        text = "missing" if found is None else _short(found)
        remedy = f'`"architectures": ["{wanted}"]` in config.json'
        severity = Severity.FAIL if "vllm" in engines else Severity.WARN
        yield Finding(code, severity, "architectures", f"{text}: vLLM does not serve this class", right, remedy)


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
    static = {group.name for group in declared.groups if group.static_int8}
    yield from _refused_by_loaders(out, static)
    severity = Severity.FAIL if set(engines).isdisjoint(("transformers", "vllm")) else Severity.WARN
    for name in static:
        found = "static int8 inputs and outputs: SGLang has no such scheme"
        expected, detail = "weights only", Detail.ACTIVATIONS
        yield Finding("static.scheme", severity, f"config_groups.{name}", found, expected, detail=detail)
    if packs and declared.method == "compressed-tensors":
        yield from _unread(out, engines)


def _refused_by_loaders(out: Mapping[str, Any], static: Collection[str]) -> Iterator[Finding]:
    """Yield findings on values that compressed-tensors knows but W4A16 loaders refuse."""
    _, section = section_of(out)
    groups = section.get("config_groups") if isinstance(section, Mapping) else None
    for name, group in (groups if isinstance(groups, Mapping) else {}).items():
        if not isinstance(group, Mapping):
            continue
        subject, code = f"config_groups.{name}", "static.scheme"
        weights = group.get("weights")
        if weights is None:
            found = "no weights: transformers loads nothing packed, vLLM stops"
            yield Finding(code, Severity.FAIL, subject, found, "how they are packed")
        weights = weights if isinstance(weights, Mapping) else {}
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
            if group.get(key) is not None and name not in static:
                found = f"{key}: quantized activations"
                yield Finding(code, Severity.FAIL, subject, found, "weights only", _ACTIVATIONS)
        if weights.get("symmetric") is False:
            found = "asymmetric: transformers from 5.23 on loads it only with dequantize=True"
            yield Finding(code, Severity.WARN, subject, found, "symmetric", detail=Detail.ASYMMETRIC)


def cache_scheme(out: Mapping[str, Any], architecture: Architecture) -> Iterator[Finding]:
    """Warn of a quantized key and value cache that transformers before 5.24 cannot set up: layers differ in heads."""
    _, section = section_of(out)
    said = section.get("kv_cache_scheme") if isinstance(section, Mapping) else None
    if said is not None and len({(one.head_dim, one.kv_heads) for one in architecture.text.layers}) > 1:
        found = "a quantized key and value cache: transformers before 5.24 raises, as layers differ in their heads"
        yield Finding("static.cache_scales", Severity.WARN, "kv_cache_scheme", found, "none, or transformers 5.24")


def _unread(out: Mapping[str, Any], engines: Collection[str]) -> Iterator[Finding]:
    """Yield findings on keys and places that only some engines read; a wrong one makes them lose packed weights."""
    place, section = section_of(out)
    status = section.get("quantization_status") if isinstance(section, Mapping) else None
    found: list[tuple[str, str, str]] = []
    if status != "compressed":
        text = f"{_short(status)}: transformers takes weights for dense ones and leaves them random"
        found.append(("quantization_status", text, "'compressed'"))
    if place in _PLACES:
        found.append((place, _PLACES[place][1], "quantization_config, at the top"))
    sparsity = section.get("sparsity_config") if isinstance(section, Mapping) else None
    if isinstance(sparsity, Mapping) and sparsity.get("targets"):
        found.append(("sparsity_config", "targets of sparsity: vLLM stops with an error", "none"))
    if isinstance(section, Mapping) and _transforms_inputs(section.get("transform_config")):
        text = "transforms of inputs or outputs: transformers and SGLang leave them out, so values are wrong"
        found.append(("transform_config", text, "none, or transforms that are in the weights"))
    found += formats(out)
    for subject, text, expected in found:
        severity = Severity.WARN if set(engines).isdisjoint(HINDERS[subject]) else Severity.FAIL
        yield Finding("static.quantization_config", severity, subject, text, expected)


def formats(out: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield faults of the format at the top of a quantization section: subject, text and the right value.

    vLLM and SGLang take it for groups that have none of their own, and stop at anything but `pack-quantized`.
    transformers checks that it is text, and infers a format that the group lacks from the group's scheme.
    """
    _, section = section_of(out)
    if not isinstance(section, Mapping):
        return
    groups, said = section.get("config_groups"), section.get("format")
    groups = groups if isinstance(groups, Mapping) else {}
    lacking = [name for name, one in groups.items() if isinstance(one, Mapping) and one.get("format") is None]
    if lacking and said != PACKED:
        where = f"config_groups.{lacking[0]} has none of its own"
        text = f"{_short(said) if 'format' in section else 'missing'} at the top, and {where}: vLLM and SGLang stop"
        yield "format", text, repr(PACKED)
    if "format" in section and said is None:
        yield "format: null", "transformers stops at null", f"{PACKED!r}, or no such key"


def _transforms_inputs(transforms: object) -> bool:
    """Return whether a section has transforms that an engine must compute, beside those that weights have in them."""
    schemes = transforms.get("config_groups") if isinstance(transforms, Mapping) else None
    schemes = schemes.values() if isinstance(schemes, Mapping) else ()
    applied = [scheme.get("apply") for scheme in schemes if isinstance(scheme, Mapping)]
    uses = [use for uses in applied if isinstance(uses, list) for use in uses if isinstance(use, Mapping)]
    return any(use.get("location") in _COMPUTED for use in uses)


def _short(value: object) -> str:
    """Return a value as text of at most 80 characters, with booleans and null as in JSON."""
    constants = {True: "true", False: "false", None: "null"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
