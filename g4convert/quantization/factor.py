"""Cholesky factor of H = X^T X + lambda I, from which GPTQ takes its columns' corrections.

    H^-1 = U^T U,  U upper triangular, in the order of falling H_ii

U comes from one factorisation. With J the reversal of the order, J H J = L L^T, so R = J L J is upper triangular with
H = R R^T, and U = R^-1. Factorising, inverting and factorising again, as is usual, costs twice as much and loses more
digits. All of it is done in the memory of H, which has 1.8 GB for the widest Linear of 31B: L overwrites the lower
triangle, and the upper one, the same until then, gives H back if it has no factor.

Letters: k columns (in_features).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

_ENOUGH = 8
"""Tokens per column from which the least damping is enough."""

_LEAST, _MOST = 0.01, 0.3
_HARDER = 10.0
_BLOCK = 128
"""Columns of a block, unless said otherwise."""
_PANEL = 512
"""Columns of H that are factorised at a time."""
_PIECE = 1 << 20
"""Elements that are reversed at a time."""


@dataclass(frozen=True, slots=True)
class Factor:
    """Cholesky factor and order that the loop takes from H.

    Args:
        upper: U, float32 [k, k], of H in the order of work, on the device of H.
        order: int64 [k], there: the column that comes first, second, and so on.
        damp: lambda over the mean of the diagonal; larger than requested if H was singular.
        mean: mean of H's diagonal, by which H was divided first.
    """

    upper: torch.Tensor
    order: torch.Tensor
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


def factorize(h: torch.Tensor, damp: float) -> Factor | None:
    """Order, damp and factorise H, on its device.

    Args:
        h: float32 [k, k], symmetric; becomes the factor's memory.
        damp: share of the mean of the diagonal to add to it. Where H is still singular, ten times as much, and so
            on until more than the whole mean would be added.

    Returns:
        The factor; None if H is 0, not finite, or singular at any damping.
    """
    diagonal = h.diagonal().cpu().numpy().copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if not (all(bool(end.isfinite()) for end in torch.aminmax(h)) and mean > 0):
        return None
    order = torch.from_numpy(np.argsort(-diagonal, kind="stable")).to(h.device)
    a = h
    _permute(a, order.flip(0))
    a.div_(mean)
    corners = [a[begin:end, begin:end].clone() for begin, end in blocks(len(a), _PANEL)]
    while damp <= 1:
        a.diagonal().add_(damp)
        if _factorize(a):
            return Factor(_reverse(_invert(a.tril_())), order, damp, mean)
        _restore(a, corners)
        damp *= _HARDER
    return None


def _permute(a: torch.Tensor, order: torch.Tensor) -> None:
    """Put the rows and the columns of `a` into this order."""
    for begin, end in blocks(len(a)):
        a[:, begin:end] = a[:, begin:end][order]
    for begin, end in blocks(len(a)):
        a[begin:end] = a[begin:end][:, order]


def _factorize(a: torch.Tensor) -> bool:
    """Replace the lower triangle of `a` by L, where a = L L^T; return False if `a` has no such factor.

    Of the upper triangle only the blocks on the diagonal change.
    """
    for begin, end in blocks(len(a), _PANEL):
        corner, failed = torch.linalg.cholesky_ex(a[begin:end, begin:end])
        if failed:
            return False
        a[begin:end, begin:end] = corner
        below = a[end:, begin:end]
        below.copy_(torch.linalg.solve_triangular(corner.mT, below, upper=True, left=False))
        for first, last in blocks(len(below), _PANEL):
            a[end + first :, end + first : end + last].addmm_(below[first:], below[first:last].mT, alpha=-1)
    return True


def _restore(a: torch.Tensor, corners: list[torch.Tensor]) -> None:
    """Give `a` its lower triangle and the blocks on its diagonal back, `corners`."""
    for (begin, end), corner in zip(blocks(len(a), _PANEL), corners, strict=True):
        a[begin:end, begin:end] = corner
        a[end:, begin:end] = a[begin:end, end:].mT


def _invert(lower: torch.Tensor) -> torch.Tensor:
    """Invert a lower triangular matrix in place, some columns at a time, from the last to the first."""
    k = len(lower)
    for begin, end in reversed([*blocks(k)]):
        corner = lower[begin:end, begin:end]
        one = torch.eye(end - begin, device=lower.device)
        corner.copy_(torch.linalg.solve_triangular(corner, one, upper=False))
        below = lower[end:, begin:end] @ corner
        torch.mm(lower[end:, end:], below, out=lower[end:, begin:end]).neg_()
    return lower


def _reverse(a: torch.Tensor) -> torch.Tensor:
    """Replace `a` by J a J. H was divided by its mean, so U is larger by the root of that, which cancels."""
    flat = a.reshape(-1)
    for first, last in blocks(len(flat) // 2, _PIECE):
        front, back = flat[first:last], flat[len(flat) - last : len(flat) - first]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
    return a


def blocks(k: int, size: int = _BLOCK) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each block of `k` columns, the last of which may be smaller."""
    return ((begin, min(begin + size, k)) for begin in range(0, k, size))
