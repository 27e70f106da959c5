"""The frontier: against all choices where they can be counted, and where a step is larger than exact."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4convert.fitting import frontier
from g4convert.fitting.frontier import Decision, Frontier, Option

OPTIONS = st.lists(
    st.builds(Option, st.integers(0, 60).map(lambda n: 7 * n), st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.5])),
    min_size=1,
    max_size=4,
)
ITEMS = st.lists(st.builds(Decision, st.just("item"), OPTIONS.map(tuple)), min_size=1, max_size=4)


def every(items: list[Decision]) -> list[tuple[int, float]]:
    """Bytes and loss of every choice."""
    return [
        (sum(option.nbytes for option in options), sum(option.loss for option in options))
        for options in product(*(item.options for item in items))
    ]


@given(ITEMS, st.floats(0, 1))
def test_a_choice_is_the_best_of_all_that_fit(items: list[Decision], share: float) -> None:
    found, choices = Frontier.of(items), every(items)
    budget = int(found.smallest + share * (sum(item.most for item in items) - found.smallest))
    choice = found.within(budget)
    best = min(loss for nbytes, loss in choices if nbytes <= budget)
    assert found.loss(choice) == best
    assert found.nbytes(choice) == min(nbytes for nbytes, loss in choices if nbytes <= budget and loss == best)


@given(ITEMS)
def test_corners_are_all_choices_that_no_other_beats(items: list[Decision]) -> None:
    found, choices = Frontier.of(items), every(items)
    corners = [(found.nbytes(one), found.loss(one)) for one in map(found.corner, range(len(found.corners)))]
    unbeaten = {
        (nbytes, loss)
        for nbytes, loss in choices
        if not any(a <= nbytes and b <= loss and (a, b) != (nbytes, loss) for a, b in choices)
    }
    assert corners == sorted(unbeaten)


@given(ITEMS, st.floats(0, 1))
def test_a_larger_step_stays_within_the_budget_and_near_the_best(items: list[Decision], share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "_MAX_STEPS", 16)
        found = Frontier.of(items)
    budget = int(found.smallest + share * (sum(item.most for item in items) - found.smallest))
    choice = found.within(budget)
    assert found.nbytes(choice) <= budget
    room = budget - found.step * len(items)
    assert all(found.loss(choice) <= loss for nbytes, loss in every(items) if nbytes <= room)


def test_less_than_the_smallest_is_refused() -> None:
    found = Frontier.of([Decision("one", (Option(10, 1.0), Option(20, 0.0)))])
    with pytest.raises(ValueError, match="less than the 10"):
        found.within(9)
