r"""Units of a checkpoint, and the entries of a config that name them in every engine.

    unit       modules that engines hold as one matrix: q, k and v; gate and up; all experts of a layer; or one module
    entry      an unanchored regex that fits the unit's name in every engine: `layers.3.mlp.gate_proj` on disk is
               `layers.3.mlp.gate_up_proj` in vLLM, and experts lie below `moe` in some engines

    re:.*language_model.*layers\.(0|1|5)\.(self_attn\.(q|k|v|qkv)_proj|mlp\.down_proj)

Entries of different units do not overlap, so an engine's order of matching does not matter. Towers and decoder use the
same names inside their layers; the part before `layers` tells them apart.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from g4convert.gemma4 import Architecture, Role
from g4convert.names import Name

_FUSED: Final[Mapping[str, str]] = {
    "self_attn.q_proj": r"self_attn\.(q|k|v|qkv)_proj",
    "self_attn.k_proj": r"self_attn\.(q|k|v|qkv)_proj",
    "self_attn.v_proj": r"self_attn\.(q|k|v|qkv)_proj",
    "mlp.gate_proj": r"mlp\.(gate|up|gate_up)_proj",
    "mlp.up_proj": r"mlp\.(gate|up|gate_up)_proj",
}
_EXPERTS: Final = r"(moe\.)?experts"
_WHOLE: Final[Mapping[str, frozenset[str]]] = {
    r"self_attn\.": frozenset({r"self_attn\.(q|k|v|qkv)_proj", r"self_attn\.o_proj"}),
    r"mlp\.": frozenset({r"mlp\.(gate|up|gate_up)_proj", r"mlp\.down_proj"}),
}
"""Shorter name of a layer's whole attention or MLP -> the parts that it replaces."""
_VISION: Final = ".*vision_tower"


_NAMED: Final[Mapping[str, tuple[str, str]]] = {
    r"self_attn\.(q|k|v|qkv)_proj": ("self_attn.qkv_proj", "*.self_attn.[qkv]_proj"),
    r"mlp\.(gate|up|gate_up)_proj": ("mlp.gate_up_proj", "*.mlp.[gu]*_proj"),
    _EXPERTS: ("experts", "*.experts.*"),
}
"""Part of several modules -> its name in messages, and its pattern in a recipe."""


@dataclass(frozen=True, slots=True)
class FusedUnit:
    """Checkpoint modules that engines hold as one matrix.

    Args:
        place: regex of the part before `layers`, with which its entries begin.
        layer: number of its layer; None outside of layers.
        part: regex of its name within the layer, or of its last name part outside of layers.
    """

    place: str
    layer: int | None
    part: str

    @property
    def name(self) -> str:
        """Name without the layer, for messages: `self_attn.qkv_proj`, `lm_head`."""
        return _NAMED[self.part][0] if self.part in _NAMED else self._path

    @property
    def label(self) -> str:
        """Name with the layer, for messages: `layers.3.self_attn.qkv_proj`, `lm_head`."""
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"

    @property
    def pattern(self) -> str:
        """The `names` pattern of a recipe's rule for this part in every layer: `*.self_attn.[qkv]_proj`."""
        if self.part in _NAMED:
            return _NAMED[self.part][1]
        return f"*{self._path}" if self.layer is None else f"*.{self._path}"

    @property
    def _path(self) -> str:
        """The name of a part that is a single module, without regex escapes."""
        return re.sub(r"\\(.)", r"\1", self.part).removesuffix("$")


def unit_of(module: Name, role: Role, architecture: Architecture) -> FusedUnit:
    """Return the unit that a checkpoint module belongs to."""
    if role is Role.VISION_TOWER and module.layer is not None:
        path = module.in_any_layer.unclipped
        return FusedUnit(_VISION, module.layer, _FUSED.get(path, re.escape(path)))
    if module.decoder_layer is not None:
        decoder = ".*language_model" if architecture.is_composite else ""
        path = module.in_layer
        part = _EXPERTS if role is Role.EXPERTS else _FUSED.get(path, re.escape(path))
        return FusedUnit(decoder, module.decoder_layer, part)
    return FusedUnit("", None, f"{re.escape(module.last)}$")


def entries(units: Iterable[FusedUnit], everything: Iterable[FusedUnit]) -> tuple[str, ...]:
    """Return the shortest entries for units, in the order of the checkpoint.

    Args:
        units: units to name.
        everything: all units of the checkpoint; entries give layer numbers only if other layers have the part, too.
    """
    layers, present = _layers(units), _layers(everything)
    parts: defaultdict[tuple[str, tuple[int, ...] | None], list[str]] = defaultdict(list)
    for key, numbers in layers.items():
        place, part = key
        parts[place, None if numbers == present[key] else tuple(sorted(numbers))].append(part)
    return tuple(
        entry for (place, numbers), names in parts.items() for entry in _entries(place, numbers, _shortened(names))
    )


def _layers(units: Iterable[FusedUnit]) -> dict[tuple[str, str], set[int]]:
    """Return (place, part) -> the layers that have it; empty outside of layers."""
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for unit in units:
        found[unit.place, unit.part].update(() if unit.layer is None else (unit.layer,))
    return dict(found)


def _shortened(parts: list[str]) -> list[str]:
    """Return the parts, with a whole attention or a whole MLP replaced by its short name."""
    for short, whole in _WHOLE.items():
        if whole <= {*parts}:
            parts = [short, *(part for part in parts if part not in whole)]
    return parts


def _entries(place: str, numbers: tuple[int, ...] | None, parts: list[str]) -> Iterable[str]:
    """Yield one entry for all parts in layers, and one for each part outside of layers."""
    inside = [part for part in parts if not part.endswith("$")]
    if inside:
        of_layers = rf"layers\.({'|'.join(map(str, numbers))})\." if numbers else r"\."
        named = inside[0] if len(inside) == 1 else f"({'|'.join(inside)})"
        yield f"re:{place}.*{of_layers}{named}.*"
    yield from (f"re:.*{part}" for part in parts if part.endswith("$"))
