"""Moments of a Linear's inputs: H = X^T X, summed in token order, and judging rows, which are not in H.

H is summed in float32 from pieces of 512 rows, on the device of the layer. The upper triangle is cut into strips of 512
columns. One thread of one rank computes a strip, as one product of fixed shape for each piece, so the bits do not
depend on their number. The lower triangle is copied, which saves half of the products.

Letters: t tokens, k columns.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.calibration.team import Team
from g4convert.devices import CPU

_PIECE = 512
_STRIP = 512
_JUDGES = 4096
"""Most judging rows; more rows would not change the judgement."""


class Moments:
    """Moments of the inputs of one Linear, or of several Linears that share their inputs.

    Args:
        k: number of columns.
        team: ranks and threads that each take a strip.
        device: device of the sum.

    Attributes:
        h: the sum X^T X, float32 [k, k]; `finish` fills its lower triangle, `take` leaves [0, 0].
        squares: its diagonal, float32 [k], which stays.
        tokens: number of rows in the sum.
    """

    def __init__(self, k: int, team: Team, device: torch.device = CPU) -> None:
        self.h = torch.zeros(k, k, device=device)
        self.squares = np.zeros(k, np.float32)
        self.tokens = 0
        self._team = team
        self._held: list[F32] = []

    def add(self, rows: torch.Tensor) -> None:
        """Add rows [t, k], which are on the device, to the sum."""
        x, h = rows.contiguous(), self.h

        def strip(columns: slice) -> None:
            for begin in range(0, len(x), _PIECE):
                piece = x[begin : begin + _PIECE]
                h[columns, columns.start :].addmm_(piece[:, columns].T, piece[:, columns.start :])

        self._team.do(strip, self._team.own(_strips(len(h))))
        self.tokens += len(rows)

    def hold(self, rows: torch.Tensor) -> None:
        """Keep judging rows [t, k]."""
        self._held.append(rows.cpu().numpy().copy())

    def finish(self) -> None:
        """Take the strips of other ranks and fill the lower triangle, once all rows are added."""
        strips = _strips(len(self.h))
        self._team.spread([self.h[columns, columns.start :] for columns in strips])
        for first, last in ((columns.start, columns.stop) for columns in strips):
            self.h[last:, first:last] = self.h[first:last, last:].T
            block = self.h[first:last, first:last]
            block.copy_(block.triu() + block.triu(1).T)
        self.squares = self._diagonal

    def blend(self, prior: torch.Tensor, share: float) -> None:
        """Add `share` times another sum to H."""
        self.h += prior * share
        self.squares = self._diagonal

    def take(self) -> torch.Tensor:
        """Return H and let go of it; its memory is the largest that a layer takes."""
        h, self.h = self.h, self.h.new_zeros(0, 0)
        return h

    @property
    def _diagonal(self) -> F32:
        diagonal: F32 = self.h.diagonal().cpu().numpy().copy()
        return diagonal

    @property
    def held(self) -> F32:
        """Judging rows, [t, k]; see `evenly`."""
        return evenly([*self._held, np.zeros((0, len(self.squares)), np.float32)])

    @property
    def mean_squares(self) -> F32:
        """E[x^2] of each column, float32 [k]."""
        squares: F32 = self.squares / np.float32(max(self.tokens, 1))
        return squares


def evenly(rows: Sequence[F32]) -> F32:
    """Return all rows, or `_JUDGES` of them, spread evenly."""
    whole = np.concatenate(rows)
    return whole if len(whole) <= _JUDGES else whole[np.linspace(0, len(whole) - 1, _JUDGES).astype(np.int64)]


def cross_products(
    pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], n: int, k: int, team: Team, device: torch.device = CPU
) -> torch.Tensor:
    """Return the sum of the products left^T right, float32 [n, k], summed like H.

    Args:
        pairs: left [t, n] and right [t, k], in token order.
        n: columns of the left.
        k: columns of the right.
        team: ranks and threads that each take a strip.
        device: device of the pairs and the sum.
    """
    total, strips = torch.zeros(n, k, device=device), _strips(n)
    for left, right in pairs:

        def strip(columns: slice, left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            for begin in range(0, len(left), _PIECE):
                rows = slice(begin, begin + _PIECE)
                total[columns].addmm_(left[rows, columns].T, right[rows])

        team.do(strip, team.own(strips))
    team.spread([total[columns] for columns in strips])
    return total


def _strips(k: int) -> list[slice]:
    return [slice(first, min(first + _STRIP, k)) for first in range(0, k, _STRIP)]
