"""Moments of a Linear's inputs: H = X^T X, summed in the order of the tokens, and rows that take no part in it.

H is summed in float32 from pieces of 512 rows. The upper triangle is cut into strips of 512 columns: one strip is a
product of fixed shape for each piece, done on one thread, so neither the number of threads nor that of machines shows
in a bit. Half of the products are saved, too.

Letters: t tokens, k columns.
"""

from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Moments"]

F32 = NDArray[np.float32]

_PIECE = 512
_STRIP = 512
_JUDGES = 4096
"""Rows that judge: more tell no more."""


class Moments:
    """The inputs of one Linear, or of several that share them.

    Args:
        k: columns.
        pool: threads that take a strip each; torch has to run on one thread in them.

    Attributes:
        h: the sum, float32 [k, k]; its lower triangle is filled by `finish`.
        tokens: rows in the sum.
    """

    def __init__(self, k: int, pool: Executor) -> None:
        self.h = np.zeros((k, k), np.float32)
        self.tokens = 0
        self._pool = pool
        self._held: list[F32] = []

    def add(self, rows: F32) -> None:
        """Add rows [t, k] to the sum."""
        x, h = torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(self.h)
        k = h.shape[0]

        def strip(first: int) -> None:
            last = min(first + _STRIP, k)
            for begin in range(0, len(x), _PIECE):
                piece = x[begin : begin + _PIECE]
                h[first:last, first:].addmm_(piece[:, first:last].T, piece[:, first:])

        for _ in self._pool.map(strip, range(0, k, _STRIP)):
            pass
        self.tokens += len(rows)

    def hold(self, rows: F32) -> None:
        """Keep rows [t, k] that judge."""
        self._held.append(np.array(rows))

    def finish(self) -> None:
        """Fill the lower triangle, once all rows are added."""
        for first in range(0, len(self.h), _STRIP):
            last = first + _STRIP
            self.h[last:, first:last] = self.h[first:last, last:].T
            block = self.h[first:last, first:last]
            block[:] = np.triu(block) + np.triu(block, 1).T

    def blend(self, prior: F32, share: float) -> None:
        """Add a share of another sum."""
        self.h += np.float32(share) * prior

    @property
    def held(self) -> F32:
        """The rows that judge, spread evenly where there are many: [t, k]."""
        rows = np.concatenate([*self._held, np.zeros((0, len(self.h)), np.float32)])
        return rows if len(rows) <= _JUDGES else rows[np.linspace(0, len(rows) - 1, _JUDGES).astype(np.int64)]

    @property
    def mean_squares(self) -> F32:
        """E[x^2] of each column, float32 [k]."""
        squares: F32 = np.diagonal(self.h) / np.float32(max(self.tokens, 1))
        return squares
