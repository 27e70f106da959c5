"""Output errors: how far off the outputs of a part are where it is packed, for a model that the memory does not hold.

    loss of a part  =  sum E[x^2] (w - w_q)^2  /  sum E[x^2] w^2

This is the mean square of the error over that of the outputs, for inputs that do not depend on each other. No layer
runs: E[x^2] of each input is in the calibration file, and weights are read some rows at a time. Nothing is known of the
inputs of tables and head, so all of them count alike, in the rows of the ids that are run.

What parts lose adds up. There is no whole to measure, and no text that a loss varies with.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.limits import Packing
from g4convert.fitting.choices import Form, label_of
from g4convert.fitting.problem import Part
from g4convert.fitting.rounding import Rounder
from g4convert.forward.pieces import TensorFiles
from g4convert.gemma4 import TABLES, Role, Weight

__all__ = ["Outputs"]

_ROWS: Final = 4096
"""Rows that are read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Weights in files, and what their inputs are.

    Args:
        checkpoint: the model.
        rounder: rounds its weights; has the statistics.
        ids: ids whose rows of tables and head are looked at, int32 [s, t].
        known: losses by part and label of the packing; grows.
    """

    checkpoint: Checkpoint
    rounder: Rounder
    ids: NDArray[np.int32]
    known: dict[str, dict[str, float]]

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """Sum of the output errors of parts, [1].

        Args:
            forms: parts and what they are packed as; all others are as they are.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        return np.array([sum(self._loss(part, form) for part, form in forms if form is not None)])

    def _loss(self, part: Part, form: Packing) -> float:
        known = self.known.setdefault(part.name, {})
        if label_of(form) not in known:
            errors, squares = np.sum([self._energies(weight, form) for weight in part.weights], axis=0)
            known[label_of(form)] = float(errors / squares) if squares else 0.0
        return known[label_of(form)]

    def _energies(self, weight: Weight, form: Packing) -> tuple[float, float]:
        """Mean squares of the error and of the outputs of a weight, summed over its outputs."""
        given = self.rounder.squares(weight)
        each = torch.ones(weight.shape[1]) if given is None else torch.from_numpy(given)
        errors = squares = 0.0
        for rows in self._rows(weight):
            values = rows.float()
            change = self.rounder.rounded(weight, values, form) - values
            errors += float((change.square() @ each).double().sum())
            squares += float((values.square() @ each).double().sum())
        return errors, squares

    def _rows(self, weight: Weight) -> Iterator[torch.Tensor]:
        """Yield the rows of a weight that are looked at, mapped or some at a time."""
        segment = weight.segment
        stored = TensorFiles(self.checkpoint)[segment.source].flatten()
        size = weight.dtype.itemsize
        whole = stored[segment.begin // size : segment.end // size].view(weight.shape)
        if weight.role in {*TABLES, Role.LM_HEAD}:
            whole = whole[torch.from_numpy(np.unique(self.ids).astype(np.int64))]
        for first in range(0, len(whole), _ROWS):
            yield whole[first : first + _ROWS]
