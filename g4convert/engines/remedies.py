"""Remedies for engines that refuse a checkpoint; each is tried before it is offered.

    fewer GPUs            the same weights, split less
    another group size    where a split would tear groups
    roles left in bf16    roles with problems, until all required engines load the rest

Of several choices of roles, the choice with the smallest output is offered. A remedy must work for all required engines
and numbers of GPUs at once.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Final

from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.weights import Weights, in_order
from g4convert.gemma4 import Role


@dataclass(frozen=True, slots=True)
class Change:
    """A change of recipe.

    Args:
        group_size: new number of weights that share a scale; None keeps the groups.
        kept: roles to leave in bf16.
    """

    group_size: int | None = None
    kept: tuple[Role, ...] = ()

    def of(self, weights: Weights) -> Weights:
        """Return the weights that the changed recipe gives."""
        changed = weights if self.group_size is None else weights.regrouped(self.group_size)
        return changed.without(self.kept) if self.kept else changed


Trial = Callable[[Change], Mapping[int, bool]]
"""Change -> the numbers of GPUs on which all required engines load the result, each with True if it needs a flag."""

EXPERT_PARALLEL: Final = "`--enable-expert-parallel`"
NO_CHOICE: Final = Remedy("no choice of `--pack` loads: another engine, or another number of GPUs", is_none=True)
_GROUPS: Final = (32, 64, 128)
_UNITS: Final = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


Everywhere = Callable[[Change], tuple[str, ...]]
"""Change -> all engines that load the result, each with its numbers of GPUs."""


def remedies(
    weights: Weights, tps: Collection[int], problems: Collection[Remark], trial: Trial, everywhere: Everywhere
) -> tuple[Remedy, ...]:
    """Return alternative changes that would make engines load a checkpoint.

    Args:
        weights: the checkpoint.
        tps: tensor parallel sizes at which it must load; empty for engines that do not split.
        problems: the engines' reasons to refuse it.
        trial: function that judges changed weights by the rules of the engines that must load it.
        everywhere: function that names the engines that load changed weights.
    """
    must = tps or (1,)
    ways: list[Remedy] = []
    if tps and (fits := trial(Change())):
        ways.append(Remedy(gpus_of(fits), tp=max(fits, key=lambda tp: (not fits[tp], tp))))
    if any(one.topic is Topic.GROUP for one in problems):
        sizes = ((size, trial(Change(group_size=size))) for size in _GROUPS)
        wide = ((size, fits) for size, fits in sizes if fits.keys() >= set(must))
        for size, fits in islice(wide, 1):
            loads = everywhere(Change(group_size=size))
            ways.append(Remedy.recipe(f"--group-size {size}", gpus=gpus_of(fits), loads=loads))
    refused = {one.role for one in problems if one.topic is not Topic.UNEVEN}
    for kept in _choices(weights, refused):
        fits = trial(change := Change(kept=kept))
        if fits.keys() >= set(must):
            about, loads = _bytes(weights.nbytes_without(kept)), everywhere(change)
            gpus = gpus_of(fits) if tps else ""
            ways.append(
                Remedy.recipe(weights.keeping(kept), kept=_listed(in_order(kept)), size=about, gpus=gpus, loads=loads)
            )
            break
    return tuple(ways) or (NO_CHOICE,)


def _choices(weights: Weights, refused: Iterable[Role | None]) -> list[tuple[Role, ...]]:
    """Return sets of refused roles to leave in bf16 that leave another role packed, the smallest output first."""
    packed = weights.packed_roles
    odd = sorted(packed.intersection(refused))
    choices = chain.from_iterable(combinations(odd, number) for number in range(1, len(odd) + 1))
    return sorted((one for one in choices if packed.difference(one)), key=weights.nbytes_without)


def gpus_of(fits: Mapping[int, bool]) -> str:
    """Return the numbers of GPUs as text, numbers that need a flag last."""
    bare, flagged = ([tp for tp, flag in fits.items() if flag is taken] for taken in (False, True))
    with_flag = f"{_either(flagged)} with {EXPERT_PARALLEL}" if flagged else ""
    return ", ".join(filter(None, (_either(bare) if bare else "", with_flag)))


def _either(numbers: list[int]) -> str:
    """Join numbers as in `1, 2 or 4 GPUs`."""
    head = ", ".join(map(str, numbers[:-1]))
    return f"{head}{' or ' if head else ''}{numbers[-1]} GPU{'' if numbers == [1] else 's'}"


def _listed(names: list[Role]) -> str:
    """Join names as in `mlp and experts`."""
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]


def _bytes(nbytes: float) -> str:
    scale, unit = next((one for one in _UNITS if nbytes >= one[0]), (1, "B"))
    return f"{nbytes / scale:.1f} {unit}"
