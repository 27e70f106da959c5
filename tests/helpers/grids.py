"""Grids of cases: the quick run takes two, `make test` a part that has every value, and `make test-full` all.

    two_when_quick(CASES)        `make test`, too, takes all
    one_in(3, CASES)             the part is the first of three, the first of the next three, and so on
    covering(CASES)              a few in which every value of every parameter is
    diagonal(FAMILIES, DTYPES)   of all combinations a few, in the same way

The part is the same in each run, so a failure is there again. What is not in it has the mark `full`, and all of it but
the first case and the middle one the mark `wide`.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _pytest.mark import ParameterSet

__all__ = ["covering", "diagonal", "one_in", "two_when_quick"]


def _marked(cases: Iterable[object], part: Sequence[int]) -> list[ParameterSet]:
    """Cases of one or several values, with the marks of a grid that has its part at these places."""
    marks = dict.fromkeys(part, pytest.mark.wide) | {part[0]: (), part[len(part) // 2]: ()}
    rows = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*row, marks=marks.get(place, pytest.mark.full)) for place, row in enumerate(rows)]


def two_when_quick(cases: Iterable[object]) -> list[ParameterSet]:
    """All cases, of which the quick run takes two, and `make test` all."""
    return one_in(1, cases)


def one_in(step: int, cases: Iterable[object]) -> list[ParameterSet]:
    """All cases, of which `make test` takes one in `step`."""
    every_case = list(cases)
    return _marked(every_case, range(0, len(every_case), step))


def covering(cases: Iterable[tuple[Any, ...]]) -> list[ParameterSet]:
    """All cases, of which `make test` takes few: each value of each parameter is in one of them."""
    every_case = list(cases)
    left = [set(values) for values in zip(*every_case, strict=True)]
    part: list[int] = []
    while any(left):
        best = max(range(len(every_case)), key=lambda place: sum(map(set.__contains__, left, every_case[place])))
        part.append(best)
        left = [missing - {value} for value, missing in zip(every_case[best], left, strict=True)]
    return _marked(every_case, part)


def diagonal(*lists: Iterable[Any]) -> list[ParameterSet]:
    """All combinations of the lists' values, of which `make test` takes few, as in `covering`."""
    return covering(product(*lists))
