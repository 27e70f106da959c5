"""The inner loop of the weights level, compiled: rows of a source, rows of words and their scales -> sums.

For each group of g weights w with codes q (zero point taken off) and scale s, three sums say all that is needed:

    ww = sum w*w    wq = sum w*q    qq = sum q*q
    squared error        sum (w - s*q)^2 = ww - 2*s*wq + s*s*qq
    its removable part   (wq - s*qq)^2 / qq: what the best scale for the same codes would save; nearly nothing,
                         unless the scale belongs to other codes

What the error may be depends on the weights: so the plainest method, rounding to the nearest code with the largest
weight at the end of the range, is tried on every group, too. No method that only looks at weights does worse.

Sums of a group are float32, all others float64. A row at a time is in scratch memory, so nothing leaves the cache
and nothing is allocated. Decoding is this module's own: compressed-tensors' needs whole tensors in between, at ten
times the time; `weights_oracle` holds the two against each other.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from g4convert.jit import jit

__all__ = ["Limits", "Rows", "Scratch", "Sums", "decode", "measure_rows"]

F32 = NDArray[np.float32]

_SIXTEEN = np.uint32(16)
_ZERO, _QUARTER, _HALF = np.float32(0), np.float32(0.25), np.float32(0.5)


class Rows(NamedTuple):
    """Some rows of a packed weight and of its source.

    Args:
        source: uint16 [r, k], bits of bf16; or uint32 [r, k], bits of fp32.
        words: uint8 [r, bytes of a row], as stored: the low nibble first.
        scale: float32 [r, groups].
        zeros: float32 [r, groups]; [0, 0] where there are none.
    """

    source: NDArray[np.uint16] | NDArray[np.uint32]
    words: NDArray[np.uint8]
    scale: F32
    zeros: F32


class Scratch(NamedTuple):
    """A row of weights, as bits and as float32 in the same memory, and its codes, float32: [k] each."""

    bits: NDArray[np.uint32]
    w: F32
    q: F32


class Limits(NamedTuple):
    """Relative squared errors of a group: up to `exact` it has none, above `lost` rounding cannot explain it."""

    exact: np.float32
    lost: np.float32


class Sums(NamedTuple):
    """Sums over tiles.

    Args:
        totals: float64 [5]: squared weights, squared errors, their removable part, the last two of plain rounding.
        counts: int64 [8]: exact groups, lost groups, zero codes, saturated codes, scales that are not finite, scales
            of 0 whose weights are not, zero codes and saturated codes of plain rounding.
    """

    totals: NDArray[np.float64]
    counts: NDArray[np.int64]


@jit
def measure_rows(rows: Rows, num_bits: int, limits: Limits, scratch: Scratch, sums: Sums) -> None:
    """Add the sums of every group of some rows to `sums`."""
    r, k = rows.source.shape
    groups = rows.scale.shape[1]
    g = k // groups
    for row in range(r):
        _load(rows.source[row], scratch.bits)
        decode(rows.words[row], num_bits, scratch.q)
        _count_codes(scratch.q, num_bits, sums.counts)
        for group in range(groups):
            begin, end = group * g, (group + 1) * g
            w, q = scratch.w[begin:end], scratch.q[begin:end]
            if rows.zeros.size:
                q -= rows.zeros[row, group]
            _add_group(_dots(w, q), rows.scale[row, group], limits, sums)
            _add_plain(w, q, num_bits, sums)


@jit
def _load(source: NDArray[np.uint16] | NDArray[np.uint32], bits: NDArray[np.uint32]) -> None:
    shift = _SIXTEEN if source.itemsize == 2 else np.uint32(0)
    for i in range(bits.size):
        bits[i] = np.uint32(source[i]) << shift


@jit
def decode(words: NDArray[np.uint8], num_bits: int, codes: F32) -> None:
    """The codes of a row, signed.

    Args:
        words: uint8, the bytes of the row's words, which may have room for more codes than there are.
        num_bits: 4 or 8.
        codes: float32 [k]; is filled.
    """
    k = codes.size
    if num_bits == 4:
        for j in range(k // 2):
            codes[2 * j] = np.float32(np.int32(words[j] & 15) - 8)
            codes[2 * j + 1] = np.float32(np.int32(words[j] >> 4) - 8)
        if k % 2:
            codes[k - 1] = np.float32(np.int32(words[k // 2] & 15) - 8)
    else:
        for j in range(k):
            codes[j] = np.float32(np.int32(words[j]) - 128)


@jit
def _count_codes(codes: F32, num_bits: int, counts: NDArray[np.int64]) -> None:
    """Codes that stand for 0, and codes at either end."""
    high = np.float32((1 << (num_bits - 1)) - 1)
    low = -high - np.float32(1)
    zero, ends = np.int32(0), np.int32(0)
    for i in range(codes.size):
        zero += np.int32(codes[i] == _ZERO)
        ends += np.int32(codes[i] == low) + np.int32(codes[i] == high)
    counts[2] += zero
    counts[3] += ends


@partial(jit, reorder=True)
def _dots(w: F32, q: F32) -> tuple[np.float32, np.float32, np.float32]:
    """Ww, wq and qq of a group."""
    ww, wq, qq = _ZERO, _ZERO, _ZERO
    for i in range(w.size):
        ww += w[i] * w[i]
        wq += w[i] * q[i]
        qq += q[i] * q[i]
    return ww, wq, qq


@jit
def _add_group(dots: tuple[np.float32, np.float32, np.float32], scale: np.float32, limits: Limits, sums: Sums) -> None:
    ww, wq, qq = dots
    s = scale
    if not np.isfinite(scale):
        s = _ZERO
        sums.counts[4] += 1
    gradient = wq - s * qq
    error = ww - s * (wq + gradient)  # ww - 2 s wq + s s qq
    if error < _ZERO:  # noqa: PLR1730 -- false of what is no number, which must stay one
        error = _ZERO
    sums.totals[0] += ww
    sums.totals[1] += error
    sums.totals[2] += gradient * gradient / max(qq, _QUARTER)  # qq of codes is 0, or at least 1
    sums.counts[0] += error <= limits.exact * ww
    sums.counts[1] += error > limits.lost * ww
    sums.counts[5] += scale == _ZERO and ww > _ZERO


@jit
def _add_plain(w: F32, q: F32, num_bits: int, sums: Sums) -> None:
    """Round a group to the nearest codes of the scale that puts its largest weight at the end; overwrites `q`."""
    high = np.float32((1 << (num_bits - 1)) - 1)
    peak = _ZERO
    for i in range(w.size):
        peak = max(peak, abs(w[i]))
    scale = _bf16(peak / (high + _HALF))
    if scale == _ZERO or not np.isfinite(scale):
        sums.counts[6] += w.size
        return
    inverse = np.float32(1) / scale
    for i in range(w.size):
        q[i] = min(max(np.rint(w[i] * inverse), -high - np.float32(1)), high)
    _count_codes(q, num_bits, sums.counts[4:])
    _, wq, qq = _dots(w, q)
    gradient = wq - scale * qq
    sums.totals[3] += _distance(w, q, scale)
    sums.totals[4] += gradient * gradient / max(qq, _QUARTER)


@partial(jit, reorder=True)
def _distance(w: F32, q: F32, scale: np.float32) -> np.float32:
    """Sum of (w - s q)^2."""
    total = _ZERO
    for i in range(w.size):
        away = w[i] - scale * q[i]
        total += away * away
    return total


@jit
def _bf16(x: np.float32) -> np.float32:
    """Rounded to the nearest bf16, to even where two are."""
    bits = np.uint32(np.float32(x).view(np.uint32))
    bits += np.uint32(0x7FFF) + ((bits >> _SIXTEEN) & np.uint32(1))
    rounded: np.float32 = np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
