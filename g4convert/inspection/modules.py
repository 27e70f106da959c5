"""Weights of a checkpoint, each with its canonical name, its role and its module's name in each engine."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from g4convert.checkpoint.contents import forms_of
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.stored import PackedModule
from g4convert.engines import speller
from g4convert.gemma4 import Architecture, Role
from g4convert.gemma4.matching import Match, match_names, match_source
from g4convert.names import Name
from g4convert.tensors import DType
from g4convert.verification.static.tensors import is_cache_scale

UNKNOWN: Final = "unknown"
DROPPABLE: Final = "droppable"
FILES: Final = "files"
"""Key beside the engines' names, for names as they are stored."""
_LINEAR: Final = frozenset(("Linear", "WeightModule"))
_EMBEDDING: Final = frozenset(("Embedding", "WeightModule"))
_OTHER: Final = frozenset(("WeightModule",))
KNOWN_CLASSES: Final = _LINEAR | _EMBEDDING
"""Class names that entries of a config may give."""
_MOST_DIMENSIONS: Final = 3
_SHAPE_FORMATS: Final = {DType.I64: "q", DType.I32: "i"}


@dataclass(frozen=True, slots=True)
class WeightModule:
    """A plain or quantized weight and its module.

    Args:
        stored: stored name; for a quantized weight, its name before quantization.
        spellings: `FILES` or engine -> name of the module.
        packed: tensors of a quantized weight; None for a plain weight.
        canonical: canonical name; None if the model or the name is unknown.
        role: a `Role`, or `unknown`, or `droppable`.
        shape: shape that the config implies; None if unknown.
        linear: True if the module is a Linear.
    """

    stored: str
    spellings: Mapping[str, str]
    packed: PackedModule | None
    canonical: str | None = None
    role: str = UNKNOWN
    shape: tuple[int, ...] | None = None
    linear: bool = False

    @property
    def classes(self) -> frozenset[str]:
        """The class names of its module."""
        if self.linear or self.packed is not None:  # fused experts too: their scheme is declared for Linears
            return _LINEAR
        return _EMBEDDING if self.role in {Role.EMBEDDING, Role.PLE_EMBEDDING} else _OTHER

    def spelled(self, engine: str) -> str:
        """Return the module's name in an engine, or in the files."""
        return self.spellings[engine]


def modules_of(checkpoint: Checkpoint, architecture: Architecture | None) -> tuple[list[WeightModule], Match | None]:
    """Return every weight, quantized weights first, and the match of names; the match is None for an unknown model."""
    weights = [(name, form if isinstance(form, PackedModule) else None) for name, form in forms_of(checkpoint.infos)]
    if architecture is None:
        return [WeightModule(name, {FILES: Name(name).owner}, of, linear=of is not None) for name, of in weights], None
    is_packed = any(of is not None for _, of in weights)
    match = (match_names if is_packed else match_source)({name for name, _ in weights}, architecture)
    canonical = {source: name for name, sources in match.sources.items() for source in sources}
    derived = dict.fromkeys(match.derived, DROPPABLE)
    spell = speller(architecture)
    modules = []
    for name, of in weights:
        known = canonical.get(name)
        names = spell(Name(known or name).owner)
        names[FILES] = Name(name).owner
        other = DROPPABLE if is_cache_scale(name) else UNKNOWN
        role, shape, linear = derived.get(name, other), None, of is not None
        if known:
            role, shape, linear = _meaning(known, match)
        modules.append(WeightModule(name, names, of, known, role, shape, linear))
    return modules, match


def _meaning(name: str, match: Match) -> tuple[str, tuple[int, ...] | None, bool]:
    """Return role and shape of a canonical name, and True if it is the weight of a Linear."""
    if expected := match.schema.expected.get(name):
        return expected.role, expected.shape, expected.linear
    if fused := match.schema.fused.get(name) or match.schema.stacked.get(name):
        return Role.EXPERTS, fused.shape, False
    return DROPPABLE, match.schema.droppable[name].shape, False


def implied(architecture: Architecture | None, modules: Sequence[WeightModule]) -> Iterator[WeightModule]:
    """Yield the tied output head: a module without tensors, which `ignore` must name."""
    if architecture and not any(module.canonical == "lm_head.weight" for module in modules):
        names = speller(architecture)("lm_head")
        yield WeightModule("lm_head.weight", names, None, "lm_head.weight", Role.LM_HEAD, linear=True)


def stored_shape(checkpoint: Checkpoint, packed: PackedModule) -> tuple[int, ...] | None:
    """Return the shape in `weight_shape`, for a weight whose shape the config does not imply; None if unusable."""
    info = packed.parts.get("weight_shape")
    if info is None or info.dtype not in _SHAPE_FORMATS or not 0 < info.numel <= _MOST_DIMENSIONS:
        return None
    shape = struct.unpack(f"<{info.numel}{_SHAPE_FORMATS[info.dtype]}", checkpoint.read(info.name))
    if "weight_packed" not in packed.parts or min(shape) < 0:
        return None
    stored = packed.parts["weight_packed"].shape
    return (
        *stored[: max(0, len(stored) - len(shape))],
        *shape,
    )  # fused experts may store the shape of one expert


def missing_from(match: Match) -> tuple[str, ...]:
    """Return the required names without a stored tensor; fused experts count as stored under all names they hold."""
    fused = [of for name, of in match.schema.experts.items() if name in match.sources]
    covered = {(part.prefix, projection) for part in fused for projection in part.projections}
    return tuple(
        name
        for name, expected in match.schema.expected.items()
        if not expected.optional and name not in match.sources and _expert_part(name) not in covered
    )


def _expert_part(name: str) -> tuple[str, str]:
    """Return an expert's prefix and projection: `...experts.7.gate_proj.weight` -> `...experts.`, `gate_proj`."""
    module = Name(name).owner
    return f"{module.owner.owner}.", module.last
