"""Comparison of the config group by which an engine builds each module with the stored scheme.

A config may have several groups. The group that an engine takes for a module depends on the engine's names and order
of matching (`Reading.target`), so that a config may fit in one engine and not in another:

    [`Linear`: int4], [`re:.*self_attn.[qkvo]_proj`: int8]     vLLM builds qkv_proj in int8, SGLang in int4
    [`Linear`: int4], [q_proj, k_proj, o_proj by name: int8]   vLLM builds qkv_proj in int4 in a layer whose values are
                                                               its keys, as there is no v_proj to name

The experts of a layer are one module, whose three projections must be in one scheme.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.engines import CONTRACTS
from g4convert.engines.contract import Contract
from g4convert.engines.matching import Reading
from g4convert.engines.module import Accepts, Module, ModuleKind
from g4convert.engines.weights import Weights
from g4convert.names import Name


@dataclass(frozen=True, slots=True)
class GroupedModule:
    """A packed checkpoint module and the config group that an engine builds it by."""

    module: Module
    shard: str
    group: DeclaredGroup


@dataclass(frozen=True, slots=True)
class WrongScheme:
    """A packed checkpoint module that an engine builds in another scheme than the stored one."""

    module: Module
    shard: str
    group: str
    difference: str


@dataclass(frozen=True, slots=True)
class SomeMisfit:
    """A misfit of one checkpoint module, with the engines that have it.

    Args:
        shard: the checkpoint module.
        group: name of the config group that the engines take.
        difference: difference between the group's scheme and the stored scheme.
        engines: engines with the misfit; empty if it is every engine that takes the module packed.
    """

    shard: str
    group: str
    difference: str
    engines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The difference, with the engines that have it where not all do."""
        return f"{self.difference}, by the names of {' and '.join(self.engines)}" if self.engines else self.difference


def misfits_of_all(weights: Weights) -> Iterator[SomeMisfit]:
    """Yield each misfit once, with the engines that have it."""
    takers: defaultdict[str, set[str]] = defaultdict(set)
    finders: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for engine, contract in CONTRACTS.items():
        for one in grouped_modules(contract, weights):
            takers[one.shard].add(engine)
        for misfit in misfits(contract, weights):
            finders[misfit.shard, misfit.group, misfit.difference].append(engine)
    for (shard, group, difference), engines in finders.items():
        yield SomeMisfit(shard, group, difference, () if {*engines} == takers[shard] else tuple(engines))


def misfits(contract: Contract, weights: Weights) -> Iterator[WrongScheme]:
    """Yield modules that an engine builds in another scheme than stored; skips damaged ones and those built plain."""
    for one in grouped_modules(contract, weights):
        stored = weights.schemes[one.shard]
        if not stored.fault and (difference := one.group.differs_from(stored)):
            yield WrongScheme(one.module, one.shard, one.group.name, difference)
    yield from _torn_experts(contract, weights)


def grouped_modules(contract: Contract, weights: Weights) -> Iterator[GroupedModule]:
    """Yield the config group of each packed checkpoint module that an engine builds packed and accepts packed."""
    if not weights.groups:
        return
    reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
    for module in contract.modules(weights.architecture):
        if module.accepts is Accepts.PLAIN or reading.packs(module) is not True:
            continue
        groups: dict[str, DeclaredGroup | None] = {}
        for shard in module.shards:
            part = Name(shard).last if module.kind is ModuleKind.EXPERTS else ""
            if part not in groups:
                groups[part] = weights.groups.get(reading.target(module, shard) or "")
            if shard in weights.schemes and (group := groups[part]) is not None:
                yield GroupedModule(module, shard, group)


def sizes_said_of_rows(weights: Weights) -> dict[str, int | None]:
    """Return the group size that the config gives each module with one scale a row; None for strategy `channel`.

    A config group that is wrong of one module is not asked about others.
    """
    wrong = {misfit.group for misfit in misfits_of_all(weights)}
    said: dict[str, int | None] = {}
    for contract in CONTRACTS.values():
        for one in grouped_modules(contract, weights):
            if weights.schemes[one.shard].strategy == "channel" and one.group.name not in wrong:
                said.setdefault(one.shard, one.group.group_size)
    return said


def _torn_experts(contract: Contract, weights: Weights) -> Iterator[WrongScheme]:
    """Yield experts that engines stop at: their groups quantize activations, or give projections different schemes."""
    if not weights.groups:
        return
    reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
    for module in contract.modules(weights.architecture):
        if module.kind is ModuleKind.EXPERTS and module.accepts is not Accepts.PLAIN and module.shards:
            groups = _groups(reading, module, weights)
            if reading.packs(module) is True and any(group.has_activations for group in groups):
                yield WrongScheme(module, module.shards[0], groups[0].name, "experts take no quantized activations")
            if reading.packs(module) is True and len({_scheme(group) for group in groups}) > 1:
                names = " and ".join(dict.fromkeys(group.name for group in groups))
                yield WrongScheme(
                    module, module.shards[0], names, "one scheme for all projections of the experts is needed"
                )


def _groups(reading: Reading, module: Module, weights: Weights) -> list[DeclaredGroup]:
    return [weights.groups[target] for target in reading.taken(module) if target is not None]


def _scheme(group: DeclaredGroup) -> DeclaredGroup:
    """Return a group without name and targets, to compare schemes."""
    return replace(group, name="", targets=(), inherited=False)
