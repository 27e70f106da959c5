"""The recipe for a size: the best predicted choice only where other texts show that it is better."""

from collections.abc import Iterable

import numpy as np
import pytest
from helpers.headers import planned
from helpers.released_configs import FAMILIES
from numpy.typing import NDArray

from g4convert.engines.limits import Packing
from g4convert.fitting.choices import DEFAULT_CHOICES, Form, label_of, parse_choices
from g4convert.fitting.choosing import choose_for
from g4convert.fitting.problem import Part, Problem
from g4convert.fitting.target import Bits


class Texts:
    """Losses on some texts: of one packing for all parts, and of anything else."""

    def __init__(self, uniform: Iterable[float], other: Iterable[float]) -> None:
        self._uniform, self._other = np.array(uniform), np.array(other)

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """One packing for all parts that are decided on has its own."""
        alike = len({form for part, form in forms if part.is_free}) == 1
        found: NDArray[np.float64] = self._uniform if alike else self._other
        return found


@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ([0.9, 1.8, 2.9], "best predicted"),  # on each of the texts
        ([0.4, 2.1, 3.1], "all int4 g32"),  # on average, but not by more than chance makes of three texts
        ([1.1, 2.1, 2.9], "all int4 g32"),
        ([1.0, 2.0, 3.0], "all int4 g32"),
    ],
)
def test_a_choice_has_to_be_better_where_it_was_not_made(other: list[float], chosen: str) -> None:
    problem = Problem.of(planned(FAMILIES["31B"]), parse_choices(DEFAULT_CHOICES))
    losses = {
        part.name: {label_of(form): (1 + number % 7) * 1e6 / part.nbytes(form) for form in part.forms if form}
        for number, part in enumerate(problem.free)
    }
    tried = choose_for(Bits(4.5), problem.frontier(losses), Texts([1.0, 2.0, 3.0], other))
    assert {one.name for one in tried} == {"best predicted", "all int4 g128", "all int4 g64", "all int4 g32"}
    assert tried[-1].name == chosen
    assert len(set(tried[-1].assignment.values()) - {None}) > 1 or chosen != "best predicted"
    if chosen != "best predicted":
        assert {tried[-1].assignment[part.name] for part in problem.free} == {Packing(4, 32)}
