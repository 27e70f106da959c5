"""The weights of a checkpoint as the engines' rules need them: shapes, roles, packings and the config's lists."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Final

from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.stored import StoredScheme
from g4convert.engines.faults import Stored
from g4convert.engines.limits import Packing
from g4convert.engines.module import Module, ModuleKind
from g4convert.gemma4 import Architecture, Role
from g4convert.names import Name

_PACKABLE: Final = (Role.ATTENTION, Role.MLP, Role.EXPERTS, Role.PLE_PROJECTION, Role.VISION_TOWER)
_BY_BITS: Final = (Role.EMBEDDING, Role.PLE_EMBEDDING, Role.LM_HEAD)
"""Roles that option `--bits` packs or keeps plain, and `--pack` does not name."""
_STARTS: Final = re.compile(r"^(model|draft_model|language_model)(\.model)?\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a planned or stored checkpoint, from which lists of entries and verdicts are derived.

    Args:
        architecture: architecture of the checkpoint.
        shapes: canonical module -> [out_features, in_features], for every stored Linear and embedding.
        roles: canonical module -> role, for the same modules.
        packed: canonical module -> packing, for every packed module.
        stacked: canonical names of plain experts whose layer has all experts in one tensor.
        joined: canonical names of experts that are packed in one tensor, which few engines read.
        ignore: entries of the config's `ignore`.
        targets: targets of all config groups; None where the config has no quantization section.
        groups: target -> config group, the last group that has the target.
        schemes: canonical module -> stored scheme, for every packed module.
    """

    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]
    roles: Mapping[str, Role]
    packed: Mapping[str, Packing]
    stacked: Collection[str] = ()
    joined: Collection[str] = ()
    ignore: tuple[str, ...] = ()
    targets: tuple[str, ...] | None = None
    groups: Mapping[str, DeclaredGroup] = field(default_factory=dict)
    schemes: Mapping[str, StoredScheme] = field(default_factory=dict)

    @property
    def forms(self) -> dict[str, Stored]:
        """Canonical module -> the form in which it is stored."""
        found = dict.fromkeys(self.shapes, Stored.PLAIN)
        found |= dict.fromkeys(self.stacked, Stored.STACKED)
        return found | dict.fromkeys(self.packed, Stored.PACKED)

    @property
    def forms_read(self) -> dict[str, Stored]:
        """Canonical module -> form, without the experts of `joined`."""
        return {module: form for module, form in self.forms.items() if module not in self.joined}

    def thinned(self) -> "Weights":
        """Return the weights with one expert per layer, if all experts of each layer are stored alike.

        Engines look at expert 0 only, so verdicts on the result are the same.
        """
        text, forms = self.architecture.text, self.forms
        experts = {module for module, role in self.roles.items() if role is Role.EXPERTS}
        if text.experts is None or len(experts) != 3 * text.experts.count * len(text.layers):
            return self
        layer_of = {one: Name(one).experts for one in experts}
        alike = {(layer_of[one], forms[one], self.packed.get(one), self._symmetric(one)) for one in experts}
        if len(alike) != len(text.layers):
            return self
        one = replace(self.architecture, text=replace(text, experts=replace(text.experts, count=1)))
        others = {module for module in experts if Name(module).expert != 0}
        return replace(
            self,
            architecture=one,
            shapes={module: shape for module, shape in self.shapes.items() if module not in others},
            packed={module: packing for module, packing in self.packed.items() if module not in others},
            stacked=experts - others if self.stacked else (),
        )

    def _symmetric(self, module: str) -> bool | None:
        return self.schemes[module].symmetric if module in self.schemes else None

    @property
    def packed_roles(self) -> frozenset[Role]:
        """Roles of the packed modules."""
        return frozenset(self.roles[module] for module in self.packed)

    @property
    def nbytes(self) -> float:
        """Size of all Linears and embeddings in bytes, with scales; plain modules count as bf16."""
        return self.nbytes_without(())

    def nbytes_without(self, roles: Collection[Role]) -> float:
        """Return `nbytes` if these roles stay in bf16."""
        left, bits = _left(roles), 0.0
        for module, shape in self.shapes.items():
            packing = None if self.roles.get(module) in left else self.packed.get(module)
            each = packing.num_bits + 16 / (packing.group_size or shape[-1]) if packing else 16
            bits += prod(shape) * each
        return bits / 8

    def without(self, roles: Collection[Role]) -> "Weights":
        """Return the weights with roles left in bf16, without config groups; attention includes shared k and v."""
        left = _left(roles)
        kept = {module: packing for module, packing in self.packed.items() if self.roles[module] not in left}
        plain = {module for module in self.packed.keys() - kept.keys() if self.roles[module] is Role.EXPERTS}
        return replace(self, packed=kept, stacked=frozenset(self.stacked) | plain, groups={})

    def regrouped(self, group_size: int) -> "Weights":
        """Return the weights packed in another group size, without config groups, which give the old size."""
        packed = {module: replace(packing, group_size=group_size) for module, packing in self.packed.items()}
        return replace(self, packed=packed, groups={})

    def holds(self, module: Module) -> bool:
        """Return whether any shard of an engine's module is stored."""
        return any(shard in self.shapes for shard in module.shards)

    def role(self, module: Module) -> Role | None:
        """Return the role of an engine's module, taken from its first stored shard; None without a stored shard."""
        return next((self.roles[shard] for shard in module.shards if shard in self.roles), None)

    def packing(self, module: Module) -> Packing | None:
        """Return the packing of an engine's module, taken from its first packed shard; None for a plain module."""
        return next((self.packed[shard] for shard in module.shards if shard in self.packed), None)

    def likeness(self, module: Module) -> tuple[object, ...]:
        """Return a key that is equal for modules of the same kind, size and form."""
        experts = module.kind is ModuleKind.EXPERTS
        sizes = () if experts else tuple(self.shapes.get(shard) for shard in module.shards)
        heads: tuple[int, ...] = ()
        number, layers = Name(module.name).decoder_layer, self.architecture.text.layers
        if number is not None and number < len(layers) and Name(module.name).last == "qkv_proj":
            heads = (layers[number].kv_heads,)
        return label(module), module.kind, module.cut, sizes, heads, self.packing(module)

    def keeping(self, roles: Collection[Role]) -> str:
        """Return the options that leave roles in bf16: `--bits ROLE=16`, or `--pack` with the other roles."""
        kept, packed = in_order(roles), self.packed_roles
        by_bits = len({*self.packed.values()}) > 1 or not packed.isdisjoint(_BY_BITS)
        rest = (f"--pack {role}" for role in _PACKABLE if role in packed and role not in kept)
        return " ".join((f"--bits {role}=16" for role in kept) if by_bits else rest)


def in_order(roles: Collection[Role]) -> list[Role]:
    """Return roles in the order in which recipes name them."""
    return [*(role for role in _PACKABLE if role in roles), *sorted({*roles}.difference(_PACKABLE))]


def _left(roles: Collection[Role]) -> set[Role]:
    """Return the roles, and `KV_SHARED` if they include `ATTENTION`, as shared k and v follow the attention."""
    return {*roles, *([Role.KV_SHARED] if Role.ATTENTION in roles else [])}


def label(module: Module) -> str:
    """Return a short name for an engine's kind of module, without model prefix and layer number."""
    if module.kind is ModuleKind.EXPERTS:
        return "experts"
    return _without_start(module.name)


@lru_cache(maxsize=1 << 16)
def _without_start(module: str) -> str:
    return Name(_STARTS.sub("", Name(module).in_layer)).kind
