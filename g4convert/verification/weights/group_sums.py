"""Compiled inner loop of the weights level: adds up sums over rows of a packed weight and of its source.

For each group of g weights w with codes q (zero point subtracted) and scale s, three sums give all results:

    ww = sum w*w    wq = sum w*q    qq = sum q*q
    squared error        sum (w - s*q)^2 = ww - 2*s*wq + s*s*qq
    its removable part   (wq - s*qq)^2 / qq: the error that the best scale for the same codes would save; nearly 0
                         unless the scale belongs to other codes

The error to expect depends on the weights. So every group is also quantized by plain rounding: to the nearest code,
with the scale that puts the largest weight at the end of the range. No method that only looks at weights does worse.

Sums over a group are float32, all others float64. One row at a time is in scratch memory, so the data stay in the
cache and nothing is allocated. The first loop computes the sums of all groups of the row, the second loop the errors,
so both are vectorized. The decoder is this module's own: compressed-tensors' decoder builds whole tensors, which
takes ten times as long; `oracle` compares the two.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from g4convert.array_types import F32, F64, I64, U8, U16, U32
from g4convert.jit import jit

_SIXTEEN = np.uint32(16)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_ZERO, _QUARTER, _HALF, _ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)


class Rows(NamedTuple):
    """Some rows of a packed weight and of its source.

    Args:
        source: uint16 [r, k], bits of bf16; or uint32 [r, k], bits of fp32.
        words: uint8 [r, bytes of a row], the packed words as stored: low nibble first.
        scale: float32 [r, groups].
        zeros: float32 [r, groups], zero points; [0, 0] for symmetric weights.
    """

    source: U16 | U32
    words: U8
    scale: F32
    zeros: F32


class Scratch(NamedTuple):
    """Scratch memory for one row and the sums of its groups.

    Args:
        bits: uint32 [k], bits of the weights.
        w: float32 [k], the weights; shares the memory of `bits`.
        q: float32 [k], the stored codes; later the codes of plain rounding.
        ww: float32 [groups], <w, w> of each group, see the module's docstring; all fields below have this form.
        wq: <w, q> of each group.
        qq: <q, q> of each group.
        peak: largest magnitude of each group.
        scale: scale of plain rounding of each group; 0 if it is not finite.
        error: squared error of plain rounding of each group.
    """

    bits: U32
    w: F32
    q: F32
    ww: F32
    wq: F32
    qq: F32
    peak: F32
    scale: F32
    error: F32


class Limits(NamedTuple):
    """Limits of a group's relative squared error: exact up to `exact`; too large for any rounding above `lost`."""

    exact: np.float32
    lost: np.float32


class Sums(NamedTuple):
    """Sums over tiles.

    Args:
        totals: float64 [5]: squared weights, squared errors, their removable part; squared errors of plain rounding,
            their removable part.
        counts: int64 [8]: exact groups, lost groups, zero codes, saturated codes, scales that are not finite, zero
            scales of groups with nonzero weights; zero codes, saturated codes of plain rounding.
    """

    totals: F64
    counts: I64


@jit
def measure_rows(rows: Rows, num_bits: int, limits: Limits, scratch: Scratch, sums: Sums) -> None:
    """Add the sums over all groups of `rows` to `sums`."""
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
def _load(source: U16 | U32, bits: U32) -> None:
    shift = _SIXTEEN if source.itemsize == 2 else np.uint32(0)
    for i in range(bits.size):
        bits[i] = np.uint32(source[i]) << shift


@jit
def decode(words: U8, num_bits: int, codes: F32) -> None:
    """Decode the signed codes of a row into `codes`.

    Args:
        words: uint8, the bytes of the row's words; the last word may be partly unused.
        num_bits: 4 or 8.
        codes: float32 [k], the output.
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
def _count_codes(codes: F32, half: np.float32, counts: I64) -> None:
    """Count zero codes and saturated codes; |code + 1/2| equals `half` for codes at either end and for no others."""
    zero, ends = _ZERO, _ZERO  # exact in float32: a row has fewer than 2^24 codes
    for i in range(codes.size):
        zero += _ONE if codes[i] == _ZERO else _ZERO
        ends += _ONE if abs(codes[i] + _HALF) == half else _ZERO
    counts[0] += np.int64(zero)
    counts[1] += np.int64(ends)


@jit
def _add_dots(zeros: F32, row: int, scratch: Scratch) -> None:
    """Compute ww, wq, qq and the peak of each group."""
    g = scratch.w.size // scratch.ww.size
    for group in range(scratch.ww.size):
        begin, end = group * g, (group + 1) * g
        zero = zeros[row, group] if zeros.size else _ZERO
        ww, wq, qq = _dots(scratch.w[begin:end], scratch.q[begin:end], zero)
        scratch.ww[group], scratch.wq[group], scratch.qq[group] = ww, wq, qq
        scratch.peak[group] = _peak(scratch.bits[begin:end])


@partial(jit, reorder=True)
def _dots(w: F32, q: F32, zero: np.float32) -> tuple[np.float32, np.float32, np.float32]:
    """Return ww, wq and qq of a group with zero point `zero`."""
    ww, wq, qq = _ZERO, _ZERO, _ZERO
    for i in range(w.size):
        code = q[i] - zero
        ww += w[i] * w[i]
        wq += w[i] * code
        qq += code * code
    return ww, wq, qq


@jit
def _peak(bits: U32) -> np.float32:
    """Return the largest magnitude; the bits of fp32 magnitudes sort as their values do, with infinity and NaN last."""
    peak = np.uint32(0)
    for i in range(bits.size):
        peak = max(peak, np.uint32(bits[i] & _MAGNITUDE))
    return np.uint32(peak).view(np.float32)


@partial(jit, reorder=True)
def _add_groups(scales: F32, limits: Limits, scratch: Scratch, sums: Sums) -> None:
    """Compute the error of every group from its sums and its scale, and add it to `sums`."""
    signal, total, removable = 0.0, 0.0, 0.0
    exact, lost, infinite, zero = 0, 0, 0, 0
    for group in range(scales.size):
        ww, wq, qq = scratch.ww[group], scratch.wq[group], scratch.qq[group]
        is_bad = not np.isfinite(scales[group])
        s = _ZERO if is_bad else scales[group]
        gradient = wq - s * qq
        error = ww - s * (wq + gradient)  # ww - 2 s wq + s s qq
        if error < _ZERO:  # noqa: PLR1730 -- the comparison is false for NaN, which must stay NaN
            error = _ZERO
        signal += np.float64(ww)
        total += np.float64(error)
        removable += np.float64(gradient * gradient / max(qq, _QUARTER))  # qq is 0 or at least 1
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
    """Apply plain rounding to each group: its largest weight at the end of the range. Overwrites `scratch.q`."""
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
    """Round a group into `q`; return wq, qq and sum (w - s*q)^2, which is too small at 8 bits to get from ww and wq."""
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
    """Add the errors of plain rounding to `sums`; the error of a group whose scale is 0 counts as 0."""
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
    """Round to the nearest bf16, ties to even."""
    bits = np.uint32(np.float32(x).view(np.uint32))
    bits += np.uint32(0x7FFF) + ((bits >> _SIXTEEN) & np.uint32(1))
    rounded: np.float32 = np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
