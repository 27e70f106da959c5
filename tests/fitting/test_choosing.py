"""The recipe for a size: the best predicted choice only where other texts show that it is better."""

from collections.abc import Iterable

import numpy as np
import pytest
from helpers.headers import planned
from helpers.released_configs import FAMILIES
from numpy.typing import NDArray

from g4convert.engines.limits import Packing
from g4convert.fitting.choices import DEFAULT_CHOICES, Form, label_form, parse_choices
from g4convert.fitting.choosing import Point, choose_for
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Problem
from g4convert.fitting.target import Bits, Loss

PROBLEM = Problem.of(planned(FAMILIES["31B"]), parse_choices(DEFAULT_CHOICES))
LOSSES = {
    part.name: {label_form(form): (1 + number % 7) * 1e6 / part.nbytes(form) for form in part.forms if form}
    for number, part in enumerate(PROBLEM.free)
}


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
    tried = choose_for(Bits(4.5), PROBLEM.solve(LOSSES), Texts([1.0, 2.0, 3.0], other))
    assert {one.name for one in tried} == {"best predicted", "all int4 g128", "all int4 g64", "all int4 g32"}
    assert tried[-1].name == chosen
    assert len(set(tried[-1].assignment.values()) - {None}) > 1 or chosen != "best predicted"
    if chosen != "best predicted":
        assert {tried[-1].assignment[part.name] for part in PROBLEM.free} == {Packing(4, 32)}


def test_a_shipped_recipe_is_taken_where_the_choice_is_no_better() -> None:
    """It may be neither one packing for all parts nor on the frontier."""
    head = PROBLEM.free[-1].name
    packed = {part.name: Packing(4, 32) if part.is_free else part.base for part in PROBLEM.parts}
    mixed = {**packed, head: Packing(8, 32)}
    solved, texts = PROBLEM.solve(LOSSES), Texts([9.0, 9.0], [2.0, 2.0])
    shipped = [
        Point("shipped", PROBLEM.nbytes(mixed), losses, None, mixed) for losses in ((1.9, 1.9), (1.0, 1.0), (2.5, 2.5))
    ]
    other = Point("of other parts", PROBLEM.smallest_bytes, (0.0, 0.0), None, {head: Packing(4, 32)})
    for points, chosen in (([other], 2.0), ([shipped[0], other], 1.9), (shipped, 1.0), (shipped[2:], 2.0)):
        tried = choose_for(Bits(6.0), solved, texts, points)
        assert tried[-1].measured == chosen
        assert tried[-1].predicted == solved.loss_of(tried[-1].assignment)
        assert all("shipped" not in one.name for one in tried[:-1])
    assert choose_for(Bits(4.2), solved, texts, shipped)[-1].name == "best predicted"  # it does not fit the size


class Sizes:
    """A loss that falls with bits, a tenth lower for one packing for all parts."""

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """The loss of one text."""
        assignment = {part.name: form for part, form in forms}
        alike = len({assignment[part.name] for part in PROBLEM.free}) == 1
        return np.array([16 - PROBLEM.bits(PROBLEM.nbytes(assignment))]) * (0.9 if alike else 1.0)


def test_one_packing_for_all_that_loses_as_little_and_is_smaller_is_taken() -> None:
    tried = choose_for(Loss(10.4), PROBLEM.solve(LOSSES), Sizes())
    assert {one.name for one in tried} > {"all int4 g128", "all int4 g64", "all int4 g32"}
    assert (tried[-1].name, round(PROBLEM.bits(tried[-1].nbytes), 3)) == ("all int4 g32", 4.5)
    assert choose_for(Loss(7.0), PROBLEM.solve(LOSSES), Sizes())[-1].name.startswith("all int8")
