"""Scales by input statistics: per group, the scale with the least sum of h_i (w_i - s q_i)^2.

    1  for both signs and each level L:  q = clip(rint(w * L / peak * sign)),  s = <w, q>_h / <q, q>_h
    2  keep the s with the largest <w, q>_h^2 / <q, q>_h: the least error after the refit
    3  round s to bf16, and keep it if its error is less than that of minmax

h_i is the mean square of input i. With it the largest weight need not be the anchor of the grid, so levels reach far
beyond half the code range (the peak is clipped) and both signs are tried.

Rows are the lanes of the inner loops: h_i is one number for all of them, and every sum has one order.

Letters: n rows, g elements of a group, k columns.
"""

import numpy as np

from g4convert.array_types import F32
from g4convert.jit import jit
from g4convert.quantization.compiled import round_bf16

LEVELS = tuple(round(64 * 5.5 * (20 / 5.5) ** (i / 29)) / 64 for i in range(30))
"""Levels peak / |s| that the search tries at 4 bits."""

_LANES = 64
_EPS = np.float32(2.0**-23)  # what compressed-tensors puts for a scale of 0
_ZERO, _ONE = np.float32(0), np.float32(1)


def weighted_scales(w: F32, h: F32, group: int, code_max: int = 7) -> F32:
    """Find the scale of each group of each row.

    Args:
        w: weights [n, k].
        h: weight of each column's squared error [k], not negative; a group of zeros counts as ones.
        group: columns that share a scale; divides k.
        code_max: the largest code.

    Returns:
        float32 [n, k / group], either sign, bf16 numbers.
    """
    n, k = w.shape
    padded = -(-n // _LANES) * _LANES
    scale = np.empty((n, k // group), np.float32)
    found = np.empty(padded, np.float32)
    lanes = np.zeros((group, padded), np.float32)
    levels = np.array(LEVELS, np.float32) * np.float32((code_max + 0.5) / 7.5)
    for number in range(k // group):
        columns = slice(number * group, (number + 1) * group)
        lanes[:, :n] = w[:, columns].T
        _search(lanes, _relative(h[columns]), levels, np.float32(code_max), found)
        scale[:, number] = found[:n]
    return scale


def _relative(h: F32) -> F32:
    """Return a group's error weights with mean 1, so that no sum vanishes or overflows."""
    mean = h.mean(dtype=np.float64)
    return np.ones_like(h) if mean <= 0 else (h / mean).astype(np.float32)


@jit
def _search(w: F32, h: F32, levels: F32, high: np.float32, scale: F32) -> None:
    """Find the scales of one group of every row: w [g, n], n a multiple of 64."""
    low = -high - _ONE
    peak, units = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    best, chosen = np.empty(_LANES, np.float32), np.empty(_LANES, np.float32)
    inverse, sums = np.empty(_LANES, np.float32), np.empty((2, _LANES), np.float32)
    for first in range(0, w.shape[1], _LANES):
        _peaks(w, first, peak, units)
        best[:] = _ZERO
        chosen[:] = _ZERO
        for level in levels:
            for sign in (-_ONE, _ONE):
                for lane in range(_LANES):
                    inverse[lane] = level * units[lane] * sign
                _project(w, h, first, inverse, low, high, sums)
                for lane in range(_LANES):
                    wq, qq = sums[0, lane], sums[1, lane]
                    ratio = wq / (qq if qq > _ZERO else _ONE)
                    gain = ratio * wq
                    chosen[lane] = ratio if gain > best[lane] else chosen[lane]
                    best[lane] = max(best[lane], gain)
        _keep(w, h, first, peak, chosen, low, high, sums, scale)


@jit
def _peaks(w: F32, first: int, peak: F32, units: F32) -> None:
    peak[:] = _ZERO
    for i in range(w.shape[0]):
        row = w[i, first : first + _LANES]
        for lane in range(_LANES):
            peak[lane] = max(peak[lane], abs(row[lane]))
    for lane in range(_LANES):
        units[lane] = _ONE / peak[lane] if peak[lane] > np.float32(2.0**-100) else _ZERO


@jit
def _project(  # noqa: PLR0913, PLR0917 -- scratch of the caller
    w: F32, h: F32, first: int, inverse: F32, low: np.float32, high: np.float32, sums: F32
) -> None:
    """Sum <w, q>_h and <q, q>_h for the codes that 1/s gives."""
    wq, qq = sums[0], sums[1]
    wq[:] = _ZERO
    qq[:] = _ZERO
    for i in range(w.shape[0]):
        row = w[i, first : first + _LANES]
        hi = h[i]
        for lane in range(_LANES):
            q = min(high, max(low, np.rint(row[lane] * inverse[lane])))
            wq[lane] += hi * (row[lane] * q)
            qq[lane] += hi * (q * q)


@jit
def _keep(  # noqa: PLR0913, PLR0917 -- scratch of the caller
    w: F32,
    h: F32,
    first: int,
    peak: F32,
    chosen: F32,
    low: np.float32,
    high: np.float32,
    sums: F32,
    scale: F32,
) -> None:
    """Set the chosen scale, or the scale of minmax if its error is not larger."""
    new, old = sums[0], sums[1]
    out = scale[first : first + _LANES]
    for lane in range(_LANES):
        s = round_bf16(peak[lane] / (high + np.float32(0.5)))
        out[lane] = s if s > _ZERO else _EPS
        s = round_bf16(chosen[lane])
        chosen[lane] = s if s != _ZERO else out[lane]
    _error(w, h, first, chosen, low, high, new)
    _error(w, h, first, out, low, high, old)
    for lane in range(_LANES):
        out[lane] = chosen[lane] if new[lane] < old[lane] else out[lane]


@jit
def _error(  # noqa: PLR0913, PLR0917 -- scratch of the caller
    w: F32, h: F32, first: int, scale: F32, low: np.float32, high: np.float32, total: F32
) -> None:
    total[:] = _ZERO
    for i in range(w.shape[0]):
        row = w[i, first : first + _LANES]
        hi = h[i]
        for lane in range(_LANES):
            q = min(high, max(low, np.rint(row[lane] / scale[lane])))
            e = row[lane] - scale[lane] * q
            total[lane] += hi * (e * e)
