"""The inner loop of the weights level, compiled: rows of a source, rows of words and their scales -> sums.

For each group of g weights w with codes q (zero point taken off) and scale s, three sums say all that is needed:

    ww = sum w*w    wq = sum w*q    qq = sum q*q
    squared error        sum (w - s*q)^2 = ww - 2*s*wq + s*s*qq
    its removable part   (wq - s*qq)^2 / qq: what the best scale for the same codes would save; nearly nothing,
                         unless the scale belongs to other codes

What the error may be depends on the weights: so the plainest method, rounding to the nearest code with the largest
weight at the end of the range, is tried on every group, too. No method that only looks at weights does worse.

Sums of a group are float32, all others float64. A row at a time is in scratch memory, so nothing leaves the cache
and nothing is allocated: the sums of all its groups first, then what follows from them, so that both loops are over
whole vectors. Decoding is this module's own: compressed-tensors' needs whole tensors in between, at ten
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
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ZERO, _QUARTER, _HALF, _ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)


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
    """A row, and what is known of its groups.

    Args:
        bits: uint32 [k], the weights' bits.
        w: float32 [k], the same memory.
        q: float32 [k], their codes; then those of plain rounding.
        ww: float32 [groups], as the next three; see the module.
        wq: <w, q> of each group.
        qq: <q, q> of each group.
        peak: largest magnitude of each group.
        scale: scale of plain rounding of each group; 0 where there is none.
        error: squared error of plain rounding of each group.
    """

    bits: NDArray[np.uint32]
    w: F32
    q: F32
    ww: F32
    wq: F32
    qq: F32
    peak: F32
    scale: F32
    error: F32


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
    half = np.float32((1 << (num_bits - 1)) - _HALF)
    for row in range(rows.source.shape[0]):
        _load(rows.source[row], scratch.bits)
        decode(rows.words[row], num_bits, scratch.q)
        _count_codes(scratch.q, half, sums.counts[2:])
        _add_dots(rows.zeros, row, scratch)
        _add_groups(rows.scale[row], limits, scratch, sums)
        _round(half, scratch)
        _add_plain(scratch, sums)
        _count_codes(scratch.q, half, sums.counts[6:])


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


@partial(jit, reorder=True)
def _count_codes(codes: F32, half: np.float32, counts: NDArray[np.int64]) -> None:
    """Count codes that stand for 0, and codes at either end: those, and no others, are half a code from `half`."""
    zero, ends = _ZERO, _ZERO  # a row has fewer than 2^24
    for i in range(codes.size):
        zero += _ONE if codes[i] == _ZERO else _ZERO
        ends += _ONE if abs(codes[i] + _HALF) == half else _ZERO
    counts[0] += np.int64(zero)
    counts[1] += np.int64(ends)


@jit
def _add_dots(zeros: F32, row: int, scratch: Scratch) -> None:
    """Fill in ww, wq, qq and the peak of each group."""
    g = scratch.w.size // scratch.ww.size
    for group in range(scratch.ww.size):
        begin, end = group * g, (group + 1) * g
        zero = zeros[row, group] if zeros.size else _ZERO
        ww, wq, qq = _dots(scratch.w[begin:end], scratch.q[begin:end], zero)
        scratch.ww[group], scratch.wq[group], scratch.qq[group] = ww, wq, qq
        scratch.peak[group] = _peak(scratch.bits[begin:end])


@partial(jit, reorder=True)
def _dots(w: F32, q: F32, zero: np.float32) -> tuple[np.float32, np.float32, np.float32]:
    """Ww, wq and qq of a group whose codes count from `zero`."""
    ww, wq, qq = _ZERO, _ZERO, _ZERO
    for i in range(w.size):
        code = q[i] - zero
        ww += w[i] * w[i]
        wq += w[i] * code
        qq += code * code
    return ww, wq, qq


@jit
def _peak(bits: NDArray[np.uint32]) -> np.float32:
    """The largest magnitude: those of fp32 are in the order of their bits, infinity and NaN above all."""
    peak = np.uint32(0)
    for i in range(bits.size):
        peak = max(peak, np.uint32(bits[i] & _MAGNITUDE))
    return np.uint32(peak).view(np.float32)


@partial(jit, reorder=True)
def _add_groups(scales: F32, limits: Limits, scratch: Scratch, sums: Sums) -> None:
    """Judge every group by its sums and its scale."""
    signal, total, removable = 0.0, 0.0, 0.0
    exact, lost, infinite, zero = 0, 0, 0, 0
    for group in range(scales.size):
        ww, wq, qq = scratch.ww[group], scratch.wq[group], scratch.qq[group]
        is_bad = not np.isfinite(scales[group])
        s = _ZERO if is_bad else scales[group]
        gradient = wq - s * qq
        error = ww - s * (wq + gradient)  # ww - 2 s wq + s s qq
        if error < _ZERO:  # noqa: PLR1730 -- false of what is no number, which must stay one
            error = _ZERO
        signal += np.float64(ww)
        total += np.float64(error)
        removable += np.float64(gradient * gradient / max(qq, _QUARTER))  # qq of codes is 0, or at least 1
        exact += error <= limits.exact * ww
        lost += error > limits.lost * ww
        infinite += is_bad
        zero += scales[group] == _ZERO and ww > _ZERO
    sums.totals[0] += signal
    sums.totals[1] += total
    sums.totals[2] += removable
    sums.counts[0] += exact
    sums.counts[1] += lost
    sums.counts[4] += infinite
    sums.counts[5] += zero


@jit
def _round(half: np.float32, scratch: Scratch) -> None:
    """Round each group to the nearest codes of the scale that puts its largest weight at the end; overwrites codes."""
    g = scratch.w.size // scratch.ww.size
    for group in range(scratch.ww.size):
        scale = _bf16(scratch.peak[group] / half)
        scratch.scale[group] = scale if np.isfinite(scale) else _ZERO
    for group in range(scratch.ww.size):
        begin, end = group * g, (group + 1) * g
        scale = scratch.scale[group]
        inverse = _ONE / scale if scale > _ZERO else _ZERO
        wq, qq, error = _rounded(scratch.w[begin:end], scratch.q[begin:end], scale, inverse, half)
        scratch.wq[group], scratch.qq[group], scratch.error[group] = wq, qq, error


@partial(jit, reorder=True)
def _rounded(
    w: F32, q: F32, scale: np.float32, inverse: np.float32, half: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Round a group into `q`; wq, qq and the sum of (w - s q)^2, which 8 bits leave too small for a difference."""
    wq, qq, error = _ZERO, _ZERO, _ZERO
    for i in range(w.size):
        code = min(max(np.rint(w[i] * inverse), -half - _HALF), half - _HALF)
        away = w[i] - scale * code
        q[i] = code
        wq += w[i] * code
        qq += code * code
        error += away * away
    return wq, qq, error


@partial(jit, reorder=True)
def _add_plain(scratch: Scratch, sums: Sums) -> None:
    """Add up plain rounding; a group without a scale has none."""
    total, removable = 0.0, 0.0
    for group in range(scratch.ww.size):
        s, qq = scratch.scale[group], scratch.qq[group]
        gradient = scratch.wq[group] - s * qq
        total += np.float64(scratch.error[group] if s > _ZERO else _ZERO)
        removable += np.float64(gradient * gradient / max(qq, _QUARTER))
    sums.totals[3] += total
    sums.totals[4] += removable


@jit
def _bf16(x: np.float32) -> np.float32:
    """Rounded to the nearest bf16, to even where two are."""
    bits = np.uint32(np.float32(x).view(np.uint32))
    bits += np.uint32(0x7FFF) + ((bits >> _SIXTEEN) & np.uint32(1))
    rounded: np.float32 = np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
