"""The lists of a config: `ignore` and the config groups, which make every engine build each module as it is stored.

    Weights: packed modules and their packings  -->  names and patterns  -->  check against each engine's modules

Stock vLLM and transformers refuse a checkpoint whose `ignore` does not say exactly which modules are built packed.
Names differ: `model.language_model.layers.0...` on disk is `language_model.model.layers.0...` in vLLM, and SGLang's
towers have fused modules without the `.linear` of the file. So `ignore` names plain weights by unanchored regexes,
one per part of the model, and by the exact names of the few Linears that stand alone. Each packing has one config
group. `prove` checks the lists before they are returned: in each version of each engine that was read, every module
is built packed if it is stored packed, and plain otherwise.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.stored import StoredScheme
from g4convert.engines import CONTRACTS, VERSIONS, speller
from g4convert.engines.contract import Contract
from g4convert.engines.groups import misfits
from g4convert.engines.limits import Packing
from g4convert.engines.matching import Disagreement
from g4convert.engines.module import LM_HEAD
from g4convert.engines.units import FusedUnit, entries, unit_of
from g4convert.engines.weights import Weights
from g4convert.errors import GateError
from g4convert.gemma4 import TABLES, Role
from g4convert.names import Name

LINEARS: Final = "Linear"
"""Target of the config group that holds most Linears; the other groups name their modules."""

_PATTERNS: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.ATTENTION: (r"re:.*\.self_attn\..*",),
    Role.KV_SHARED: (r"re:.*\.self_attn\..*",),
    Role.MLP: (r"re:.*\.mlp\..*",),
    Role.EXPERTS: (r"re:.*\.experts.*",),
    Role.ROUTER: (r"re:.*\.router.*",),
    Role.PLE_PROJECTION: (r"re:.*per_layer_.*",),
    Role.LM_HEAD: (r"re:.*lm_head.*",),
    Role.VISION_TOWER: (r"re:.*vision_tower.*",),
    Role.AUDIO_TOWER: (r"re:.*audio_tower.*",),
    Role.EMBEDDER: (r"re:.*vision_embedder.*", r"re:.*embed_vision.*", r"re:.*embed_audio.*"),
    Role.DRAFTER: (r"re:.*(pre|post)_projection", r"re:.*masked_embedding.*"),
}
_PATCH_EMBEDDER: Final = r"re:.*patch_embedder.*"
_BY_NAME: Final = {*TABLES, Role.LM_HEAD}
"""Roles whose modules must be named by an entry: no engine counts a table or a head as a Linear."""
_TOGETHER: Final[Mapping[Role, set[Role]]] = {
    Role.ATTENTION: {Role.ATTENTION, Role.KV_SHARED},
    Role.KV_SHARED: {Role.ATTENTION, Role.KV_SHARED},
}
_ALSO_IN_TOWERS: Final = {Role.ATTENTION, Role.KV_SHARED, Role.MLP}
"""Roles whose module names also occur in the vision tower."""


def with_lists(weights: Weights) -> Weights:
    """Return a checkpoint with the `ignore` and config groups that describe its packing; empty if nothing is packed.

    Args:
        weights: the checkpoint; its own lists are replaced.

    Raises:
        GateError: an engine would ignore a packed module, build a plain one packed, or build one by a scheme that
            differs from the stored one.
    """
    if not weights.packed:
        return replace(weights, ignore=(), targets=None, groups={})
    units = _Units.of(weights)
    groups = _groups(units)
    found = replace(
        weights,
        ignore=_ignore(weights, units),
        targets=tuple(target for group in groups for target in group.targets),
        groups={target: group for group in groups for target in group.targets},
        schemes=weights.schemes or _schemes(weights),
    )
    prove(found)
    return found


@dataclass(frozen=True, slots=True)
class _Units:
    """Units of a checkpoint, in its order.

    Args:
        packed: packing of each unit; None for a unit that stays plain.
        roles: role of each unit.
    """

    packed: Mapping[FusedUnit, Packing | None]
    roles: Mapping[FusedUnit, Role]

    @classmethod
    def of(cls, weights: Weights) -> "_Units":
        units = {module: unit_of(Name(module), role, weights.architecture) for module, role in weights.roles.items()}
        return cls(
            {unit: weights.packed.get(module) for module, unit in units.items()},
            {unit: weights.roles[module] for module, unit in units.items()},
        )

    @property
    def most(self) -> Packing | None:
        """The packing that most packed units have, tables and head aside; None where no other unit is packed."""
        counts = Counter(
            packing for unit, packing in self.packed.items() if packing and self.roles[unit] not in _BY_NAME
        )
        return counts.most_common(1)[0][0] if counts else None


def _groups(units: _Units) -> tuple[DeclaredGroup, ...]:
    """Return one group for each packing: target `Linear` for the most frequent, named entries for the others."""
    named: dict[Packing, list[FusedUnit]] = {}
    most = units.most
    for unit, packing in units.packed.items():
        if packing is not None:
            others = named.setdefault(packing, [])
            others += [unit] if packing != most or units.roles[unit] in _BY_NAME else []
    ordered = sorted(named, key=lambda packing: packing != most)
    return tuple(
        _group(
            f"group_{number}",
            packing,
            (*((LINEARS,) if packing == most else ()), *entries(named[packing], units.packed)),
        )
        for number, packing in enumerate(ordered)
    )


def _group(name: str, packing: Packing, targets: tuple[str, ...]) -> DeclaredGroup:
    stored = _stored(packing)
    return DeclaredGroup(
        name, targets, stored.format, stored.kind, stored.num_bits, stored.strategy, stored.group_size, stored.symmetric
    )


def _schemes(weights: Weights) -> dict[str, StoredScheme]:
    """Return the scheme in which each packed module will be stored."""
    forms = {module: (packing, weights.shapes[module]) for module, packing in weights.packed.items()}
    schemes = {form: replace(_stored(form[0]), shape=form[1]) for form in {*forms.values()}}
    return {module: schemes[form] for module, form in forms.items()}


def _stored(packing: Packing) -> StoredScheme:
    strategy = "group" if packing.group_size else "channel"
    return StoredScheme("pack-quantized", "int", packing.num_bits, strategy, packing.group_size, symmetric=True)


def _ignore(weights: Weights, units: _Units) -> tuple[str, ...]:
    """Return full names of plain modules that stand alone, then a regex for each part of the model that stays plain."""
    called = _spellings(weights)
    packed = weights.packed_roles
    tower_is_packed = Role.VISION_TOWER in packed
    names: dict[str, None] = {} if Role.LM_HEAD in packed else {LM_HEAD: None}
    patterns: dict[str, None] = {} if Role.LM_HEAD in packed else {r"re:.*lm_head.*": None}
    for role, entries_of_role in _PATTERNS.items():
        if role is Role.EMBEDDER:
            exact = {spelled[place] for spelled in called[role] for place in ("files", "transformers")}
            names |= dict.fromkeys(sorted(exact))
        if role is Role.VISION_TOWER and tower_is_packed:
            patterns[_PATCH_EMBEDDER] = None
        if not packed.isdisjoint(_TOGETHER.get(role, {role})):
            patterns |= dict.fromkeys(_kept_parts(units, role))
            continue
        used = [entry for entry in entries_of_role if any(_fits(entry, spelled) for spelled in called[role])]
        if tower_is_packed and role in _ALSO_IN_TOWERS:
            used = [entry.replace("re:", "re:(?!.*vision_tower)") for entry in used]
        patterns |= dict.fromkeys(used)
    return (*names, *patterns)


def _kept_parts(units: _Units, role: Role) -> tuple[str, ...]:
    """Return entries for the plain units of a role that is partly packed.

    Units outside of layers have entries of their own, except those of the PLE projection.
    """
    kept = [
        unit
        for unit, packing in units.packed.items()
        if packing is None and units.roles[unit] is role and (unit.layer is not None or role is Role.PLE_PROJECTION)
    ]
    return entries(kept, units.packed)


def _spellings(weights: Weights) -> Mapping[Role, list[dict[str, str]]]:
    """Return the names of every plain Linear in every engine, by role; for experts, the names of one expert."""
    spell = speller(weights.architecture)
    called: defaultdict[Role, list[dict[str, str]]] = defaultdict(list)
    for module, role in weights.roles.items():
        kept = module not in weights.packed and role not in TABLES
        if kept and (role is not Role.EXPERTS or not called[role]):
            called[role].append(spell(module))
    return called


def _fits(entry: str, spelled: Mapping[str, str]) -> bool:
    pattern = re.compile(entry.removeprefix("re:"))
    return any(pattern.match(name) for name in spelled.values())


def prove(weights: Weights) -> None:
    """Check that every version of every engine builds each module in the form in which it is stored.

    Raises:
        GateError: a packed module would be built plain, a plain one packed, or one by a wrong scheme; names each kind.
    """
    wrong: dict[str, None] = {}
    for contract in VERSIONS:
        newest = contract is CONTRACTS[contract.engine]
        place = contract.engine if newest else f"{contract.engine} {contract.versions}"
        wrong |= {f"{kind} ({place}): {fault}": None for kind, fault in _wrong(contract, weights)}
    if wrong:
        raise GateError(
            f"ignore list: {len(wrong)} kinds of Linears would be built in the wrong form",
            offenders=list(wrong),
            hint="pack whole roles, by `pack` and `bits` alone; report the recipe, as this is a fault of g4convert",
        )


def _wrong(contract: Contract, weights: Weights) -> Iterator[tuple[str, str]]:
    """Yield each kind of module that an engine would build in another form or scheme than stored, and the fault."""
    reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
    for module in contract.modules(weights.architecture):
        built = reading.packs(module)
        if module.configured and built is not any(shard in weights.packed for shard in module.shards):
            yield Name(module.name).kind, _fault(built=built)
    several = len({group.name for group in weights.groups.values()}) > 1
    for misfit in misfits(contract, weights) if several else ():
        yield Name(misfit.module.name).kind, f"built by {misfit.group}: {misfit.difference}"


def _fault(*, built: bool | Disagreement) -> str:
    if isinstance(built, Disagreement):
        sides = (f"{name} {'packed' if packed else 'not'}" for name, packed in built.names.items())
        return f"one module in two forms: {', '.join(sides)}"
    return "kept, but not ignored" if built else "packed, but ignored"
