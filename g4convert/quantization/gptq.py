"""GPTQ (https://arxiv.org/abs/2210.17323): rounds a weight by columns, and corrects later columns for the error.

    H = X^T X + lambda I,  H^-1 = U^T U,  U upper triangular
    for column i:  q_i = clip(rint(w_i / s_i)),  e = (w_i - s_i q_i) / U_ii,  w_j -= e U_ij  for j > i

Scales are fixed before the loop, sign included: the loop sees `s q` alone, so negative scales change nothing in it.
Columns go in the order of falling H_ii. That is an order of work; codes and groups keep their places, so nothing
like a `g_idx` is stored.

U comes from one Cholesky factorisation. With J the reversal of the order, J H J = L L^T, so R = J L J is upper
triangular with H = R R^T, and U = R^-1. Factorising, inverting and factorising again, as is usual, costs twice as
much and loses more digits. All of it is done in the memory of H, which has 1.8 GB for the widest Linear of 31B: L
overwrites the lower triangle, and the upper one, the same until then, gives H back if it has no factor.

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

from g4convert.array_types import F32, I8, I64
from g4convert.jit import jit

__all__ = ["Factor", "aim", "damping", "factorize", "gptq", "nearest_codes"]

_ENOUGH = 8
"""Tokens per column from which the least damping is enough."""

_LEAST, _MOST = 0.01, 0.3
_HARDER = 10.0
_BLOCK = 128
_ROWS = 256
_PANEL = 512
"""Columns of H that are factorised at a time."""
_PIECE = 1 << 20
"""Elements that are reversed at a time."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Cholesky factor and order that the loop takes from H.

    Args:
        upper: U, float32 [k, k], of H in the order of work.
        order: int64 [k]: the column that comes first, second, and so on.
        damp: lambda over the mean of the diagonal; larger than requested if H was singular.
        mean: mean of H's diagonal, by which H was divided first.
    """

    upper: F32
    order: I64
    damp: float
    mean: float


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
        h: float32 [k, k], symmetric; becomes the factor's memory.
        damp: share of the mean of the diagonal to add to it. Where H is still singular, ten times as much, and so
            on until more than the whole mean would be added.

    Returns:
        The factor; None if H is 0, not finite, or singular at any damping.
    """
    diagonal = np.diagonal(h).copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if not (all(np.isfinite(rows).all() for rows in np.array_split(h, -(-len(h) // _PANEL))) and mean > 0):
        return None
    order = np.argsort(-diagonal, kind="stable")
    a = torch.from_numpy(h)
    _permute(a, torch.from_numpy(order[::-1].copy()))
    a.div_(mean)
    corners = [a[begin:end, begin:end].clone() for begin, end in _blocks(len(a), _PANEL)]
    while damp <= 1:
        a.diagonal().add_(damp)
        if _factorized(a):
            return Factor(_reversed(_inverted(a.tril_())), order, damp, mean)
        _restore(a, corners)
        damp *= _HARDER
    return None


def _permute(a: torch.Tensor, order: torch.Tensor) -> None:
    """Put the rows and the columns of `a` into this order."""
    for begin, end in _blocks(len(a)):
        a[:, begin:end] = a[:, begin:end][order]
    for begin, end in _blocks(len(a)):
        a[begin:end] = a[begin:end][:, order]


def _factorized(a: torch.Tensor) -> bool:
    """Replace the lower triangle of `a` by L, where a = L L^T; return False if `a` has no such factor.

    Of the upper triangle only the blocks on the diagonal change.
    """
    for begin, end in _blocks(len(a), _PANEL):
        corner, failed = torch.linalg.cholesky_ex(a[begin:end, begin:end])
        if failed:
            return False
        a[begin:end, begin:end] = corner
        below = a[end:, begin:end]
        below.copy_(torch.linalg.solve_triangular(corner.mT, below, upper=True, left=False))
        for first, last in _blocks(len(below), _PANEL):
            a[end + first :, end + first : end + last].addmm_(below[first:], below[first:last].mT, alpha=-1)
    return True


def _restore(a: torch.Tensor, corners: list[torch.Tensor]) -> None:
    """Give `a` its lower triangle and the blocks on its diagonal back, `corners`."""
    for (begin, end), corner in zip(_blocks(len(a), _PANEL), corners, strict=True):
        a[begin:end, begin:end] = corner
        a[end:, begin:end] = a[begin:end, end:].mT


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


def aim(  # noqa: PLR0913 -- a weight, and where to
    w: F32, off: F32, factor: Factor, share: float, pool: Executor, *, of_inputs: bool
) -> None:
    """Move a weight, in place, so that on the inputs of H it gives what it gave on the original's inputs.

        W + share W D (H + lambda I)^-1,  D = (X0 - X)^T X

    With `share` 1 this is the ridge regression of the original's outputs W X0 on X, drawn to W instead of 0.

    Args:
        w: W, [n, k].
        off: D, [k, k], or W D, [n, k]: X0 the original's inputs, X those of H.
        factor: the factor of H.
        share: share of the way.
        pool: threads that take a tile of rows each; torch has to run on one thread in them.
        of_inputs: whether `off` is D.
    """
    d, upper, order = torch.from_numpy(off), torch.from_numpy(factor.upper), torch.from_numpy(factor.order)

    def do(rows: slice) -> None:
        tile = torch.from_numpy(w[rows])
        drift = tile @ d if of_inputs else d[rows]
        drift = drift[:, order].mul_(share / factor.mean)
        tile[:, order] += drift @ upper.mT @ upper

    for _ in pool.map(do, _tiles(w.shape[0])):
        pass


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
    codes = np.empty(w.shape, np.int8)

    def do(rows: slice) -> None:
        ordered = np.ascontiguousarray(w[rows][:, factor.order])
        each = np.ascontiguousarray(scale[rows][:, factor.order // group])
        out = np.empty(ordered.shape, np.int8)
        _tile(ordered, each, factor.upper, code_max, out)
        codes[rows][:, factor.order] = out

    for _ in pool.map(do, _tiles(w.shape[0])):
        pass
    return codes


def _tiles(n: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, n, _ROWS))


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


def _blocks(k: int, size: int = _BLOCK) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + size, k)) for begin in range(0, k, size))


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
