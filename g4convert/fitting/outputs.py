"""Output errors: the relative error of a part's outputs if it is packed, for a model larger than the memory.

    loss of a part  =  sum E[x^2] (w - w_q)^2  /  sum E[x^2] w^2

This is the error's mean square divided by the outputs' mean square, for independent inputs. No layer runs: the
calibration file has E[x^2] of each input, and weights are read some rows at a time. It has no statistics for tables and
head, so there all columns count alike, and only the rows of the given ids are compared.

Losses of parts add up: the loss of a whole choice is their sum, and it does not vary by text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from g4convert.array_types import F64, I32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.limits import Packing
from g4convert.fitting.choices import Form, label_form
from g4convert.fitting.parts import Part
from g4convert.fitting.rounding import Rounder
from g4convert.forward.pieces import TensorFiles
from g4convert.gemma4 import TABLES, Role, Weight

_ROWS_AT_ONCE: Final = 4096
"""Rows read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputErrors:
    """Measure of output errors, from stored weights and statistics of their inputs.

    Args:
        checkpoint: the model.
        rounder: rounds the weights; has the statistics.
        ids: token ids whose rows of tables and head are compared, int32 [s, t].
        known: losses by part name and packing label; is added to.
    """

    checkpoint: Checkpoint
    rounder: Rounder
    ids: I32
    known: dict[str, dict[str, float]]

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> F64:
        """Return the summed output errors of parts, [1].

        Args:
            forms: parts and their packings; all other parts stay unchanged.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        return np.array([sum(self._measure_loss(part, form) for part, form in forms if form is not None)])

    def _measure_loss(self, part: Part, form: Packing) -> float:
        losses = self.known.setdefault(part.name, {})
        if label_form(form) not in losses:
            errors, squares = np.sum([self._sum_squares(weight, form) for weight in part.weights], axis=0)
            losses[label_form(form)] = float(errors / squares) if squares else 0.0
        return losses[label_form(form)]

    def _sum_squares(self, weight: Weight, form: Packing) -> tuple[float, float]:
        """Return the mean squares of a weight's error and of its outputs, each summed over the outputs."""
        statistics = self.rounder.squares(weight)
        input_squares = torch.ones(weight.shape[1]) if statistics is None else torch.from_numpy(statistics)
        errors = squares = 0.0
        for rows in self._read_rows(weight):
            values = rows.float()
            change = self.rounder.round_weight(weight, values, form) - values
            errors += float((change.square() @ input_squares).double().sum())
            squares += float((values.square() @ input_squares).double().sum())
        return errors, squares

    def _read_rows(self, weight: Weight) -> Iterator[torch.Tensor]:
        """Yield the compared rows of a weight, `_ROWS` at a time."""
        segment = weight.segment
        stored = TensorFiles(self.checkpoint)[segment.source].flatten()
        size = weight.dtype.itemsize
        matrix = stored[segment.begin // size : segment.end // size].view(weight.shape)
        if weight.role in {*TABLES, Role.LM_HEAD}:
            matrix = matrix[torch.from_numpy(np.unique(self.ids).astype(np.int64))]
        for first in range(0, len(matrix), _ROWS_AT_ONCE):
            yield matrix[first : first + _ROWS_AT_ONCE]
