"""Packed modules against the config group that each engine builds them by.

Where every engine that takes a module finds the same fault, the config says what is not stored; where some do, the
targets hold in the others only.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from g4convert.engines import CONTRACTS
from g4convert.engines.forms import ONE_TARGET
from g4convert.engines.groups import misfits, taken
from g4convert.engines.weights import Weights
from g4convert.report import Detail, Finding, Severity

__all__ = ["other_schemes"]

_ONE: Final = "quantize the source again: the file was changed, or its writer packed it wrongly"
_ALL: Final = "correct it: loaders go by the config"


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is said of many modules in one finding.

    Args:
        group: the config group that they are built by.
        difference: between what it says and what is stored.
        engines: that find it; empty where all do that take the modules.
    """

    group: str
    difference: str
    engines: tuple[str, ...]

    @property
    def found(self) -> str:
        """The difference, and who finds it."""
        return f"{self.difference}, by the names of {' and '.join(self.engines)}" if self.engines else self.difference

    def severity(self, required: Collection[str]) -> Severity:
        """Return how it counts where some engines must load the output."""
        return Severity.WARN if self.engines and set(self.engines).isdisjoint(required) else Severity.FAIL


def other_schemes(weights: Weights, required: Collection[str]) -> Iterator[Finding]:
    """Modules that are stored in another scheme than the config group says that engines build them by.

    Args:
        weights: the output.
        required: engines that must load it: what only others would build wrongly warns.
    """
    takers: defaultdict[str, set[str]] = defaultdict(set)
    members: defaultdict[str, set[str]] = defaultdict(set)
    for engine, contract in CONTRACTS.items():
        for one in taken(contract, weights):
            takers[one.shard].add(engine)
            members[one.group.name].add(one.shard)
    for fault, modules in _alike(weights, takers).items():
        many = len(modules) > 1
        yield Finding(
            "static.scheme",
            fault.severity(required),
            f"config_groups.{fault.group}" if many else modules[0],
            fault.found,
            "the same in both",
            ONE_TARGET if fault.engines else _ALL if many else _ONE,
            Detail.GROUP,
            count=len(modules),
            total=len(members[fault.group]),
            first=modules[0],
        )


def _alike(weights: Weights, takers: dict[str, set[str]]) -> dict[_Fault, list[str]]:
    """Faults and the modules that each is about.

    Args:
        weights: the output.
        takers: by module, the engines that take it packed.
    """
    finders: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for engine, contract in CONTRACTS.items():
        for one in misfits(contract, weights):
            finders[one.shard, one.group, one.difference].append(engine)
    found: defaultdict[_Fault, list[str]] = defaultdict(list)
    for (module, group, difference), engines in finders.items():
        some = () if {*engines} == takers[module] else tuple(engines)
        found[_Fault(group, difference, some)].append(module)
    return found
