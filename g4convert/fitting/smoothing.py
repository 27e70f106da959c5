"""Measured losses without the noise that a choice would fall for.

    log loss of a part in a packing  =  level of the part  +  level of the packing

A few hundred tokens leave a tenth of noise in each loss, and a choice among hundreds prefers what came out low by
chance. Groups of 128 instead of 32 make the error of every layer larger by about the same factor, so parts of one kind
share the factors between packings of one number of bits. What is chosen by is that fit; what was measured stays beside.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np

from g4convert.fitting.choices import label_of
from g4convert.fitting.problem import Losses, Part, Problem

__all__ = ["smoothed"]

_LEAST: Final = 1e-12
"""Loss that one of 0 counts as, in logarithms."""


def smoothed(problem: Problem, losses: Losses) -> Losses:
    """The losses to choose by.

    Args:
        problem: parts and packings.
        losses: as measured.
    """
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
    """Losses [parts, packings] as products of one factor of each: least squares of the logarithms."""
    logs = np.log(np.maximum(np.array(losses), _LEAST))
    found: list[list[float]] = np.exp(logs.mean(1, keepdims=True) + logs.mean(0) - logs.mean()).tolist()
    return found
