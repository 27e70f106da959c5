"""Checks of an output's config: the source's keys are unchanged, and it describes the same model.

No key of the source may be lost or changed, since the model computes by it, and none may be added that changes answers.
Two spellings of one fact (`global_head_dim` and `per_layer_config`, `torch_dtype` and `dtype`) count as equal.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Final

from g4convert.checkpoint.sections import SECTIONS
from g4convert.errors import InputError
from g4convert.gemma4 import Architecture
from g4convert.gemma4.defaults import changes_answers
from g4convert.report import Finding, Severity

_SPELLINGS: Final = ("per_layer_config", "global_head_dim", "num_global_key_value_heads")
"""Alternative keys for the width of full-attention layers; `read_architecture` compares the resulting widths."""
_WRITERS: Final = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}
"""Keys that the writer of a config sets, and that are not reported if the source lacks them."""
_QUIET: Final = {"transformers_version", "_name_or_path"}
_CLASSES: Final = {"architectures", "model_type"}
_REMEDY: Final = "take the source's config.json and put the quantization_config of this one into it"
_MISSING: Final = object()


def config_keys(
    out: Mapping[str, Any], source: Mapping[str, Any], *, text_only: bool, has_head: bool
) -> Iterator[Finding]:
    """Yield findings on keys of the source that the output lost, changed or added.

    Args:
        out: the output's config.
        source: the source's.
        text_only: the output is the decoder of a multimodal source.
        has_head: the output stores a head, so that it may have one of its own.
    """
    untied = has_head and out.get("tie_word_embeddings") is False and source.get("tie_word_embeddings") is not False
    if text_only:
        head = {"tie_word_embeddings": source.get("tie_word_embeddings", _MISSING)}
        section = source.get("text_config", source)
        source = {**section, **{key: value for key, value in head.items() if value is not _MISSING}}
    source = _untied(source) if untied else source
    yield from _differences(out, source, out, "", _QUIET | _CLASSES if text_only else _QUIET)


def _untied(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source's config with `tie_word_embeddings` false at every level that has the key."""
    text = source.get("text_config")
    below = {"text_config": _untied(text)} if isinstance(text, Mapping) else {}
    own = {"tie_word_embeddings": False} if "tie_word_embeddings" in source else {}
    return {**source, **own, **below}


def _differences(
    out: Mapping[str, Any], source: Mapping[str, Any], whole: Mapping[str, Any], path: str, ignored: set[str]
) -> Iterator[Finding]:
    """Yield a finding for each key that differs in one section (`path`) of the output's config (`whole`)."""
    for key, value in source.items():
        if key in SECTIONS or key in ignored or (key == "architectures" and not path):
            continue
        found = out.get(key, _MISSING)
        subject = f"{path}{key}"
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from _differences(found, value, whole, f"{subject}.", _QUIET)
        elif found is _MISSING and (value is None or _said_otherwise(key, value, out)):
            found = "left out, as null means" if value is None else "said in another way"
            yield Finding("static.config", Severity.INFO, subject, found, short(value))
        elif found is _MISSING:
            yield Finding("static.config", Severity.FAIL, subject, "lost", short(value), _REMEDY)
        elif found != value:
            yield Finding("static.config", Severity.FAIL, subject, short(found), short(value), _REMEDY)
    for key in sorted(out.keys() - source.keys() - SECTIONS - _WRITERS - set(_SPELLINGS)):
        subject, value = f"{path}{key}", short(out[key])
        if changes_answers(whole, path, key, out[key]):
            yield Finding(
                "static.config", Severity.FAIL, subject, f"{value}, added", "left out, as in the source", _REMEDY
            )
        elif not ignored & _CLASSES:
            yield Finding("static.config", Severity.INFO, subject, value, "not in the source")


def _said_otherwise(key: str, value: object, out: Mapping[str, Any]) -> bool:
    if key in _SPELLINGS:
        return any(other in out for other in _SPELLINGS)
    renamed = {"torch_dtype": "dtype", "dtype": "torch_dtype"}.get(key)
    return renamed is not None and out.get(renamed) == value


def read_architecture(
    out: Mapping[str, Any], source: Architecture | None, *, has_head: bool
) -> tuple[Architecture, tuple[Finding, ...]]:
    """Return the architecture to check names and shapes against, and findings on how the output's own differs.

    Args:
        out: the output's config.
        source: the source's architecture, which is returned where the two differ; None takes the output's.
        has_head: the output stores a head; without one, its head can only be the embedding.

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
            Finding("static.architecture", Severity.FAIL, *_split(line, source.family), _REMEDY) for line in lines
        )
    if source is None:
        return own, ()
    wanted = source
    if own.model_type in source.text_types:
        wanted = replace(source.text_only(), model_type=own.model_type)
    wanted = wanted.untied() if has_head and not own.tied_embeddings else wanted  # with the source's head
    return wanted, tuple(_parts_that_differ(own, wanted))


def has_head(names: Iterable[str]) -> bool:
    """Return whether stored names have an output head among them."""
    return any("lm_head." in name for name in names)


def _split(line: str, family: str) -> tuple[str, str, str]:
    """Return a config's fault in three parts: the key, what it has, and what it should have."""
    subject, _, found = line.partition(": ")
    found, _, expected = (found or line).partition(", expected ")
    return subject, found, expected or (family if subject == "config.json" else "as in the source")


def _parts_that_differ(found: object, expected: object, path: str = "") -> Iterator[Finding]:
    """Yield a finding for each value in which two architectures differ; the config's dtype is not compared."""
    if found == expected or path == "dtype":
        return
    if is_dataclass(found) and type(found) is type(expected):
        for field in (one for one in fields(found) if one.compare):
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
    return short(asdict(part) if is_dataclass(part) and not isinstance(part, type) else part)


def model_class(out: Mapping[str, Any], architecture: Architecture, engines: Collection[str]) -> Iterator[Finding]:
    """Check that `architectures` names the class of the model type: vLLM chooses the model's code by it."""
    found, wanted = out.get("architectures"), architecture.class_name
    code, right = "static.class", f"[{wanted!r}]"
    if found == [wanted]:
        yield Finding(code, Severity.PASS, "architectures", "the class of the model type", "")
    else:
        text = "missing" if found is None else short(found)
        remedy = f'`"architectures": ["{wanted}"]` in config.json'
        severity = Severity.FAIL if "vllm" in engines else Severity.WARN
        yield Finding(code, severity, "architectures", f"{text}: vLLM does not serve this class", right, remedy)


def short(value: object) -> str:
    """Return a value as text of at most 80 characters, with booleans and null as in JSON."""
    constants = {True: "true", False: "false", None: "null"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
