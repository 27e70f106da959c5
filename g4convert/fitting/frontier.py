"""The least loss for every size: each item takes one of its options; bytes and losses add up.

    best[b] = the least loss of the items so far with at most b steps more than their smallest options

This is the multiple-choice knapsack, solved for all budgets at once. A step is the largest number of bytes that divides
every size difference, so the result is exact. If that makes more than 262,144 steps, the step is larger: options are
rounded up, and a choice may miss the best by one step for each item. A choice never exceeds its budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F64, I8

_MAX_STEPS: Final = 1 << 18
"""Most steps between the smallest and the largest size."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store an item.

    Args:
        nbytes: size in bytes.
        loss: loss, not negative.
    """

    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Decision:
    """An independent decision: a choice takes exactly one of its options."""

    name: str
    options: tuple[Option, ...]

    @property
    def least(self) -> int:
        """Bytes of the smallest option."""
        return min(option.nbytes for option in self.options)

    @property
    def most(self) -> int:
        """Bytes of the largest option."""
        return max(option.nbytes for option in self.options)


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Best choices of some items, by size.

    Args:
        items: the items.
        step: bytes of a step; see the module.
        best: least loss with 0, 1, 2, ... steps above the smallest size, float64 [steps + 1], not rising.
        picks: option of each item in that choice, int8 [items, steps + 1].
        corners: steps at which `best` falls: choices that no other beats in both size and loss.
    """

    items: tuple[Decision, ...]
    step: int
    best: F64
    picks: I8
    corners: NDArray[np.intp]

    @classmethod
    def of(cls, items: Sequence[Decision]) -> "Frontier":
        """Solve the knapsack for all sizes."""
        step = _choose_step(items)
        extra = [[-(-(option.nbytes - item.least) // step) for option in item.options] for item in items]
        steps = sum(max(steps_of_item) for steps_of_item in extra)
        best, picks = np.zeros(steps + 1), np.zeros((len(items), steps + 1), np.int8)
        for number, (item, costs) in enumerate(zip(items, extra, strict=True)):
            before, best = best, np.full(steps + 1, np.inf)
            for place, (option, cost) in enumerate(zip(item.options, costs, strict=True)):
                losses = before[: steps + 1 - cost] + option.loss
                better = losses < best[cost:]
                best[cost:][better] = losses[better]
                picks[number, cost:][better] = place
        return cls(tuple(items), step, best, picks, np.flatnonzero(np.diff(best, prepend=np.inf) < 0))

    @property
    def smallest(self) -> int:
        """Bytes of the smallest choice."""
        return sum(item.least for item in self.items)

    def within(self, nbytes: int) -> tuple[int, ...]:
        """Return the option of each item in the choice of least loss within `nbytes`; the smallest of equals.

        Raises:
            ValueError: `nbytes` is below the smallest choice.
        """
        if nbytes < self.smallest:
            raise ValueError(f"{nbytes} bytes are less than the {self.smallest} of the smallest choice")
        steps = min((nbytes - self.smallest) // self.step, len(self.best) - 1)
        return self._trace(self._fewest_steps(self.best[steps]))

    def corner(self, place: int) -> tuple[int, ...]:
        """Return choice number `place` of those that no other beats, counted from the smallest."""
        return self._trace(int(self.corners[place]))

    def nbytes(self, choice: Sequence[int]) -> int:
        """Return the bytes of a choice."""
        return sum(item.options[place].nbytes for item, place in zip(self.items, choice, strict=True))

    def loss(self, choice: Sequence[int]) -> float:
        """Return the summed loss of a choice."""
        return sum(item.options[place].loss for item, place in zip(self.items, choice, strict=True))

    def _fewest_steps(self, loss: float) -> int:
        """Return the fewest steps whose best loss is at most `loss`."""
        return int(np.searchsorted(-self.best, -loss))

    def _trace(self, steps: int) -> tuple[int, ...]:
        """Return the choice behind `best[steps]`: walk `picks` from the last item to the first."""
        choice = []
        for number in range(len(self.items) - 1, -1, -1):
            item, place = self.items[number], int(self.picks[number, steps])
            choice.append(place)
            steps -= -(-(item.options[place].nbytes - item.least) // self.step)
        return tuple(reversed(choice))


def _choose_step(items: Sequence[Decision]) -> int:
    """Return the bytes of a step: the exact step, or a larger one if that makes more than `_MAX_STEPS` steps."""
    exact = gcd(*(option.nbytes - item.least for item in items for option in item.options)) or 1
    whole = sum(item.most - item.least for item in items)
    return max(exact, -(-whole // _MAX_STEPS))
