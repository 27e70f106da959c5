"""A stored checkpoint as `Weights`: its tensors, and what its config declares."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from g4convert.checkpoint.contents import Contents
from g4convert.checkpoint.declared import Declared, declared_in
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.stored import PackedModule, StoredScheme, stored_scheme
from g4convert.engines import CONTRACTS
from g4convert.engines.groups import grouped_modules
from g4convert.engines.limits import Packing
from g4convert.engines.weights import Weights
from g4convert.gemma4 import TABLES, Architecture, Role
from g4convert.names import Name
from g4convert.tensors import TensorInfo

_STACK: Final = 3  # dimensions of experts that are one tensor
_INT4: Final = 4


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint that is read once, and then judged by all checks.

    Args:
        checkpoint: files of the checkpoint.
        contents: meaning of each tensor.
        section: the config's quantization section; None without a section.
        weights: the weights as the engines' rules need them.
    """

    checkpoint: Checkpoint
    contents: Contents
    section: Declared | None
    weights: Weights

    @classmethod
    def of(cls, checkpoint: Checkpoint, architecture: Architecture) -> "StoredCheckpoint":
        """Read a checkpoint.

        Args:
            checkpoint: files of the checkpoint.
            architecture: architecture that gives the expected names and shapes.
        """
        return cls._declaring(checkpoint, Contents.of(checkpoint.infos, architecture), checkpoint.config)

    @classmethod
    def _declaring(cls, checkpoint: Checkpoint, contents: Contents, config: Mapping[str, Any]) -> "StoredCheckpoint":
        section = declared_in(config)
        return cls(checkpoint, contents, section, _stored_weights(contents, _said(section)))

    def declaring(self, config: Mapping[str, Any]) -> "StoredCheckpoint":
        """Return the same tensors with another config, which may differ in its quantization section only."""
        return self._declaring(replace(self.checkpoint, config=config), self.contents, config)

    @property
    def declared(self) -> Declared | None:
        """The parsed section; None also for an empty section."""
        return _said(self.section)


def _said(section: Declared | None) -> Declared | None:
    return None if section is None or section.is_empty else section


def _stored_weights(contents: Contents, declared: Declared | None) -> Weights:
    """Return a checkpoint's `Weights`.

    Args:
        contents: tensors of the checkpoint.
        declared: the config's quantization section; None for a missing or empty section.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    roles: dict[str, Role] = {}
    schemes: dict[str, StoredScheme] = {}
    stacked, joined = [], []
    groups = declared.groups if declared else ()
    bits = next((group.num_bits for group in groups if group.num_bits), None)
    fused = {name: one.shape for one in contents.fused.values() for name in one.names}
    for name, form in contents.stored.items():
        expected = contents.expected[name]
        if not expected.linear and expected.role not in TABLES:
            continue
        module = str(Name(name).module)
        shapes[module], roles[module] = expected.shape, expected.role
        if isinstance(form, PackedModule):
            schemes[module] = stored_scheme(form, fused[name] if form.fused else expected.shape, bits)
            joined += [module] if form.fused else []
        elif isinstance(form, TensorInfo) and len(form.shape) == _STACK:
            stacked.append(module)
    weights = Weights(
        contents.architecture,
        shapes,
        roles,
        {module: Packing(one.num_bits or bits or _INT4, one.group_size) for module, one in schemes.items()},
        stacked=frozenset(stacked),
        joined=frozenset(joined),
        ignore=declared.ignore if declared else (),
        targets=tuple(entry for group in groups for entry in group.targets) if groups else None,
        groups={entry: group for group in groups for entry in group.targets},
        schemes=schemes,
    )
    return replace(weights, packed={**weights.packed, **_single_groups(weights)})


def _single_groups(weights: Weights) -> dict[str, Packing]:
    """Return the packings of modules with a scale [n, 1] that the config calls a group: of all inputs, not of a row.

    Engines take the size from the config, and GPUs share no group.
    """
    sizes = {group.group_size for group in weights.groups.values()}
    if not any(one.strategy == "channel" and one.shape and one.shape[-1] in sizes for one in weights.schemes.values()):
        return {}
    found: dict[str, Packing] = {}
    for contract in CONTRACTS.values():
        for one in grouped_modules(contract, weights):
            size = one.group.meant_by(weights.schemes[one.shard]).group_size
            found.setdefault(one.shard, replace(weights.packed[one.shard], group_size=size))
    return found
