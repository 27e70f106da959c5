"""Search for config keys that do not fit the tensors, with values that do.

Each value is read from the shape of one tensor. A key is reported only if the config with all new values describes all
tensors without a fault, so every report is proved.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from g4convert.errors import InputError
from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.dialects import body_of
from g4convert.gemma4.matching import Match
from g4convert.tensors import TensorInfo

__all__ = ["fitting"]

Fits = Callable[[Architecture], bool]

_MOST = 3  # a hand edit leaves at most this many wrong keys; with more, the config is another model's
_LAYER = re.compile(r"^layers\.(\d+)\.")


def fitting(match: Match, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], fits: Fits) -> str:
    """Return the remedy for a config that does not fit its tensors; empty if no values of its keys make it fit.

    Args:
        match: match of the stored names with the names that the config implies.
        tensors: every stored tensor, by name.
        config: content of config.json.
        fits: returns True if an architecture has exactly these tensors and shapes.
    """
    section = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    path = "" if section is config else "text_config."
    assert isinstance(section, Mapping)  # noqa: S101 -- an architecture was read from it
    if backbone := _backbone(match, tensors, config, fits):
        return backbone
    said = {key: value for key, value in _read(match, tensors, section) if section.get(key) != value}
    if not said or not _fit(config, path, said, fits):
        return ""
    for key in list(said):
        fewer = {other: value for other, value in said.items() if other != key}
        if fewer and _fit(config, path, fewer, fits):
            said = fewer
    if len(said) > _MOST:
        return f"config.json is another model's ({', '.join(said)} differ): take the one saved with these weights"
    edits = " and ".join(_edit(f"{path}{key}", section.get(key), value) for key, value in said.items())
    return f"the tensors say otherwise: in config.json set {edits}"


def _backbone(match: Match, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], fits: Fits) -> str:
    """Return the remedy for a drafter of a model of another width; empty if that is not what is wrong."""
    key, sources = "backbone_hidden_size", match.sources.get("post_projection.weight")
    if not sources or not tensors[sources[0]].shape:
        return ""
    width = tensors[sources[0]].shape[0]
    if config.get(key) == width or not _fit(config, "", {key: width}, fits):
        return ""
    return f"the tensors say otherwise: in config.json set {_edit(key, config.get(key), width)}"


def _edit(key: str, old: object, new: object) -> str:
    """Return the text of one edit: the key, its new value and its old value."""
    if isinstance(old, list) and isinstance(new, list) and old[: len(new)] == new:
        return f"{key} to its first {len(new)} entries"
    return f"{key} to {json.dumps(new)}" + (
        "" if old is None else f" (it is {json.dumps(old)})" if not isinstance(old, list) else ""
    )


def _fit(config: Mapping[str, Any], path: str, values: Mapping[str, Any], fits: Fits) -> bool:
    """Return whether a config with these values describes the tensors."""
    changed = {**config, "text_config": {**config["text_config"], **values}} if path else {**config, **values}
    try:
        return fits(Architecture.from_config(changed))
    except InputError:
        return False


def _read(
    match: Match, tensors: Mapping[str, TensorInfo], section: Mapping[str, Any]
) -> Iterator[tuple[str, int | list[str]]]:
    """Yield keys of the decoder with the values that the stored tensors show."""
    shapes = {body: tensors[source].shape for source, body in match.unknown.items()}
    shapes |= {body_of(name): tensors[sources[0]].shape for name, sources in match.sources.items()}
    sliding = _sliding(shapes, section)
    for key, pattern, axis in _SIZES:
        body = pattern.format(sliding)
        if (shape := shapes.get(body)) and len(shape) > axis:
            yield key, shape[axis]
    if "embed_tokens_per_layer.weight" not in shapes:
        yield "hidden_size_per_layer_input", 0
    for key, body, norm in (
        ("num_attention_heads", "q_proj", "q_norm"),
        ("num_key_value_heads", "k_proj", "k_norm"),
    ):
        rows, width = (shapes.get(f"layers.{sliding}.self_attn.{one}.weight") for one in (body, norm))
        if rows and width:
            yield key, rows[0] // width[0]
    if any(body.endswith("self_attn.q_proj.bias") for body in shapes):
        yield "attention_bias", True
    layers = {int(found[1]) for body in shapes if (found := _LAYER.match(body))}
    if layers:
        yield "num_hidden_layers", max(layers) + 1
        yield from _kinds(shapes, max(layers) + 1, section)


_SIZES = (
    ("vocab_size", "embed_tokens.weight", 0),
    ("hidden_size", "embed_tokens.weight", 1),
    ("vocab_size_per_layer_input", "embed_tokens_per_layer.weight", 0),
    ("hidden_size_per_layer_input", "per_layer_projection_norm.weight", 0),
    ("intermediate_size", "layers.{}.mlp.up_proj.weight", 0),
    ("head_dim", "layers.{}.self_attn.q_norm.weight", 0),
    ("num_experts", "layers.{}.router.proj.weight", 0),
    ("moe_intermediate_size", "layers.{}.experts.down_proj", 2),
    ("moe_intermediate_size", "layers.{}.experts.0.down_proj.weight", 1),
)
"""Key, the tensor whose shape shows its value (`{}` is the number of a sliding layer), and the axis."""


def _sliding(shapes: Mapping[str, tuple[int, ...]], section: Mapping[str, Any]) -> int:
    """Return the first layer whose head width differs from full attention's; 0 if all layers have full attention's."""
    wide = (section.get("global_head_dim"),)
    numbers = (int(found[1]) for body in shapes if (found := _LAYER.match(body)))
    narrow = (n for n in sorted(set(numbers)) if shapes.get(f"layers.{n}.self_attn.q_norm.weight", wide) != wide)
    return next(narrow, 0)


def _kinds(
    shapes: Mapping[str, tuple[int, ...]], count: int, section: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Yield `layer_types`, read from the widths of heads, if full and sliding layers differ in width."""
    widths = [shapes.get(f"layers.{n}.self_attn.q_norm.weight") for n in range(count)]
    wide = section.get("global_head_dim")
    if wide is not None and wide != section.get("head_dim") and all(widths):
        yield "layer_types", ["full_attention" if w == (wide,) else "sliding_attention" for w in widths]
