"""GPTQ (https://arxiv.org/abs/2210.17323): rounds a weight by columns, and corrects later columns for the error.

    H = X^T X + lambda I,  H^-1 = U^T U,  U upper triangular
    for column i:  q_i = clip(rint(w_i / s_i)),  e = (w_i - s_i q_i) / U_ii,  w_j -= e U_ij  for j > i

Scales are fixed before the loop, sign included: the loop sees `s q` alone, so negative scales change nothing in it.
Columns go in the order of falling H_ii. That is an order of work; codes and groups keep their places, so nothing
like a `g_idx` is stored.

U comes from one Cholesky factorisation. With J the reversal of the order, J H J = L L^T, so R = J L J is upper
triangular with H = R R^T, and U = R^-1. Factorising, inverting and factorising again, as is usual, costs twice as
much and loses more digits. All of it is done in one copy of H, which has 1.8 GB for the widest Linear of 31B.

Rows are independent. They are done in tiles of a fixed size, each on one thread, so the result does not depend on
the number of threads. Within a tile, columns go in blocks: a compiled loop updates the block, one matrix product the
columns after it.

Letters: n rows (out_features), k columns (in_features), b columns of a block.
"""

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.jit import jit
from g4convert.quantization.compiled import F32, I8

__all__ = ["Factor", "damping", "factorize", "gptq", "nearest_codes"]

_ENOUGH = 8
"""Tokens per column from which the least damping is enough."""

_LEAST, _MOST = 0.01, 0.3
_HARDER = 10.0
_BLOCK = 128
_ROWS = 256
_PIECE = 1 << 20
"""Elements that are permuted at a time."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Cholesky factor and order that the loop takes from H.

    Args:
        upper: U, float32 [k, k], of H in the order of work.
        order: int64 [k]: the column that comes first, second, and so on.
        damp: lambda over the mean of the diagonal; larger than requested if H was singular.
    """

    upper: F32
    order: NDArray[np.int64]
    damp: float


def damping(tokens: int, k: int) -> float:
    """Return the share of the mean of its diagonal that is added to H; it falls with the number of tokens H sums over.

    Args:
        tokens: rows of X.
        k: columns of X.

    Returns:
        0.01 from 8 k tokens on, 0.3 up to k tokens, and in between a straight line of their logarithms.
    """
    if tokens <= k:
        return _MOST
    share = min(1.0, math.log(tokens / k) / math.log(_ENOUGH))
    return _MOST * math.exp(share * math.log(_LEAST / _MOST))


def factorize(h: F32, damp: float) -> Factor | None:
    """Order, damp and factorise H.

    Args:
        h: float32 [k, k], symmetric; not changed.
        damp: share of the mean of the diagonal to add to it. Where H is still singular, ten times as much, and so
            on until more than the whole mean would be added.

    Returns:
        The factor; None if H is 0, not finite, or singular at any damping.
    """
    diagonal = np.diagonal(h)
    mean = float(diagonal.mean(dtype=np.float64))
    if not (np.isfinite(h).all() and mean > 0):
        return None
    order = np.argsort(-diagonal, kind="stable")
    while damp <= 1:
        turned = _permuted(h, order[::-1].copy()).div_(mean)
        turned.diagonal().add_(damp)
        if _factorized(turned):
            return Factor(_reversed(_inverted(turned)), order, damp)
        damp *= _HARDER
    return None


def _permuted(h: F32, order: NDArray[np.int64]) -> torch.Tensor:
    """Return a copy of H with rows and columns in this order; needs no second copy."""
    index = torch.from_numpy(order)
    found = torch.from_numpy(h)[index]
    for rows in found.split_with_sizes(_sizes(len(h))):
        rows.copy_(rows[:, index])
    return found


def _sizes(k: int) -> list[int]:
    """Rows that are permuted at a time."""
    return [min(_ROWS, k - first) for first in range(0, k, _ROWS)]


def _factorized(a: torch.Tensor) -> bool:
    """Replace `a` by L, where a = L L^T; return False if `a` has no such factor."""
    failed, columns = torch.zeros((), dtype=torch.int32), a.mT  # as LAPACK has them, so that nothing is copied
    torch.linalg.cholesky_ex(columns, upper=True, out=(columns, failed))
    return not failed


def _inverted(lower: torch.Tensor) -> F32:
    """Invert a lower triangular matrix in place, some columns at a time, from the last to the first."""
    k = len(lower)
    for begin, end in reversed([*_blocks(k)]):
        corner = lower[begin:end, begin:end]
        corner.copy_(torch.linalg.solve_triangular(corner, torch.eye(end - begin), upper=False))
        below = lower[end:, begin:end] @ corner
        torch.mm(lower[end:, end:], below, out=lower[end:, begin:end]).neg_()
    inverse: F32 = lower.numpy()
    return inverse


def _reversed(a: F32) -> F32:
    """Replace `a` by J a J. H was divided by its mean, so U is larger by the root of that, which cancels."""
    flat = a.reshape(-1)
    for first in range(0, half := flat.size // 2, _PIECE):
        front, back = flat[first : min(first + _PIECE, half)], flat[::-1][first : min(first + _PIECE, half)]
        front[:], back[:] = back.copy(), front.copy()
    return a


def nearest_codes(w: F32, scale: F32, code_max: int = 7) -> I8:
    """Round each weight to the nearest code.

    Args:
        w: [n, k].
        scale: [n, groups], not 0.
        code_max: the largest code.

    Returns:
        int8 [n, k].
    """
    n, groups = scale.shape
    codes = np.rint(w.reshape(n, groups, -1) / scale[:, :, None])
    np.clip(codes, -code_max - 1, code_max, out=codes)
    found: I8 = codes.reshape(w.shape).astype(np.int8)
    return found


def gptq(w: F32, scale: F32, factor: Factor, pool: Executor, code_max: int = 7) -> I8:
    """Round a weight so that the error of its product with the inputs of H is small.

    Args:
        w: [n, k].
        scale: [n, groups], not 0.
        factor: the factor of H.
        pool: threads that take a tile of rows each; torch has to run on one thread in them.
        code_max: the largest code.

    Returns:
        int8 [n, k], in the order of the columns of `w`.
    """
    group = w.shape[1] // scale.shape[1]
    tiles = [slice(first, first + _ROWS) for first in range(0, w.shape[0], _ROWS)]
    codes = np.empty(w.shape, np.int8)

    def do(rows: slice) -> None:
        ordered = np.ascontiguousarray(w[rows][:, factor.order])
        each = np.ascontiguousarray(scale[rows][:, factor.order // group])
        out = np.empty(ordered.shape, np.int8)
        _tile(ordered, each, factor.upper, code_max, out)
        codes[rows][:, factor.order] = out

    for _ in pool.map(do, tiles):
        pass
    return codes


def _tile(w: F32, scale: F32, upper: F32, code_max: int, codes: I8) -> None:
    """Round a tile of rows into `codes`; overwrites `w`."""
    rest, u = torch.from_numpy(w), torch.from_numpy(upper)
    for begin, end in _blocks(w.shape[1]):
        block = np.ascontiguousarray(w[:, begin:end])
        errors = np.empty_like(block)
        scales, out = np.ascontiguousarray(scale[:, begin:end]), np.empty(block.shape, np.int8)
        inside = np.ascontiguousarray(upper[begin:end, begin:end])
        _columns(block, scales, inside, np.float32(code_max), out, errors)
        codes[:, begin:end] = out
        if end < w.shape[1]:
            rest[:, end:] -= torch.from_numpy(errors) @ u[begin:end, end:]


def _blocks(k: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + _BLOCK, k)) for begin in range(0, k, _BLOCK))


@jit
def _columns(  # noqa: PLR0913, PLR0917 -- what goes in and out of a compiled loop
    w: F32, scale: F32, upper: F32, high: np.float32, codes: I8, errors: F32
) -> None:
    """Round a block of columns, row by row; arrays are [n, b], U is [b, b]."""
    low = -high - np.float32(1)
    for r in range(w.shape[0]):
        row = w[r]
        for i in range(w.shape[1]):
            q = min(high, max(low, np.rint(row[i] / scale[r, i])))
            codes[r, i] = np.int8(q)
            e = (row[i] - scale[r, i] * q) / upper[i, i]
            errors[r, i] = e
            u = upper[i]
            for j in range(i + 1, w.shape[1]):
                row[j] -= e * u[j]
