"""Measured losses with their noise averaged out, so that a choice does not follow chance.

    log loss of a part in a packing  =  level of the part  +  level of the packing

A few hundred tokens leave about 10% noise in each loss, and a choice among hundreds prefers losses that are low by
chance. Groups of 128 instead of 32 raise the error of every layer by about the same factor, so parts of one kind
share the factors between packings of one bit width. The choice uses the fitted losses; measured losses are kept too.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from g4convert.fitting.choices import label_of
from g4convert.fitting.problem import Losses, Problem

if TYPE_CHECKING:
    from g4convert.fitting.parts import Part

__all__ = ["smoothed"]

_LEAST: Final = 1e-12
"""Smallest loss, so that a loss of 0 has a logarithm."""


def smoothed(problem: Problem, losses: Losses) -> Losses:
    """Return the fitted losses, by part name and packing label."""
    alike: defaultdict[tuple[str, tuple[str, ...]], list[Part]] = defaultdict(list)
    for part in problem.free:
        for bits in dict.fromkeys(form.num_bits for form in part.forms if form is not None):
            labels = tuple(label_of(form) for form in part.forms if form is not None and form.num_bits == bits)
            alike[part.kind, labels].append(part)
    found: dict[str, dict[str, float]] = {part.name: {} for part in problem.free}
    for (_, labels), parts in alike.items():
        for part, row in zip(
            parts, _fitted([[losses[part.name][label] for label in labels] for part in parts]), strict=True
        ):
            found[part.name] |= dict(zip(labels, row, strict=True))
    return found


def _fitted(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """Fit losses [parts, packings] as part factor x packing factor, by least squares of the logarithms."""
    logs = np.log(np.maximum(np.array(losses), _LEAST))
    found: list[list[float]] = np.exp(logs.mean(1, keepdims=True) + logs.mean(0) - logs.mean()).tolist()
    return found
