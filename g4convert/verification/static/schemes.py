"""Comparison of packed modules with the config group that each engine builds them by.

If every engine that builds a module finds the same fault, the config group does not describe the stored tensors. If
only some engines find it, `targets` select the right group in the other engines only.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final

from g4convert.engines import CONTRACTS
from g4convert.engines.forms import ONE_TARGET
from g4convert.engines.groups import SomeMisfit, misfits_of_all, taken
from g4convert.engines.weights import Weights
from g4convert.report import Detail, Finding, Severity
from g4convert.verification.static.packing import AGAIN

__all__ = ["other_schemes"]

_ALL: Final = "correct it: loaders go by the config"


def other_schemes(weights: Weights, required: Collection[str]) -> Iterator[Finding]:
    """Yield findings on modules whose stored scheme differs from the config group that engines build them by.

    Args:
        weights: weights of the output.
        required: engines that must load the output; a fault in other engines only warns.
    """
    members: defaultdict[str, set[str]] = defaultdict(set)
    for contract in CONTRACTS.values():
        for one in taken(contract, weights):
            members[one.group.name].add(one.shard)
    alike: defaultdict[SomeMisfit, list[str]] = defaultdict(list)
    for found in misfits_of_all(weights):
        alike[replace(found, shard="")].append(found.shard)
    for fault, modules in alike.items():
        many = len(modules) > 1
        yield Finding(
            "static.scheme",
            Severity.WARN if fault.engines and set(fault.engines).isdisjoint(required) else Severity.FAIL,
            f"config_groups.{fault.group}" if many else modules[0],
            fault.text,
            "the same in both",
            ONE_TARGET if fault.engines else _ALL if many else AGAIN,
            Detail.GROUP,
            count=len(modules),
            total=len(members[fault.group]),
            first=modules[0],
        )
