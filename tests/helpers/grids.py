"""Grids of cases of which the usual run takes a part that has every value, and `make test-full` takes all.

    every(3, CASES)              the first of three, the first of the next three, and so on
    covering(CASES)              a few in which every value of every parameter is
    diagonal(FAMILIES, DTYPES)   of all combinations a few, in the same way

The part is the same in each run, so a failure is there again; the others carry the mark `full`.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _pytest.mark import ParameterSet

__all__ = ["covering", "diagonal", "every"]


def _sampled(case: object, *, chosen: bool) -> ParameterSet:
    """A case of one or several values, marked `full` unless it is chosen."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=() if chosen else pytest.mark.full)


def every(step: int, cases: Iterable[object]) -> list[ParameterSet]:
    """All cases, of which the usual run takes one in `step`."""
    return [_sampled(case, chosen=place % step == 0) for place, case in enumerate(cases)]


def covering(cases: Iterable[tuple[Any, ...]]) -> list[ParameterSet]:
    """All cases, of which the usual run takes few: each value of each parameter is in one of them."""
    every_case = list(cases)
    left = [set(values) for values in zip(*every_case, strict=True)]
    chosen = set()
    while any(left):
        best = max(every_case, key=lambda case: sum(map(set.__contains__, left, case)))
        chosen.add(best)
        left = [missing - {value} for value, missing in zip(best, left, strict=True)]
    return [_sampled(case, chosen=case in chosen) for case in every_case]


def diagonal(*lists: Iterable[Any]) -> list[ParameterSet]:
    """All combinations of the lists' values, of which the usual run takes few, as in `covering`."""
    return covering(product(*lists))
