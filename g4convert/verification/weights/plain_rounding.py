"""Compiled inner loop: plain rounding of each group, which the stored codes are compared with.

A group whose stored scale is the plain one, and of whose weights none is farther than half of it from its stored code,
is plainly rounded: its sums are those of plain rounding, too. If that holds for all groups, nothing is rounded here.
"""

from functools import partial

import numpy as np

from g4convert.array_types import F32, U32
from g4convert.jit import jit
from g4convert.verification.weights.lanes import LANES, WIDTH, Scratch

_SIXTEEN = np.uint32(16)
_ZERO, _QUARTER, _HALF, _ONE = np.float32(0), np.float32(0.25), np.float32(0.5), np.float32(1)
_RESIZED = np.float32(0.1)
"""Share of a group's squared weights that another scale saves, besides the error of plain rounding, beyond which the
group is resized. With half the scale or 1.5 times it, that is a quarter; of sound int4 groups it is at most 0.03."""
_NEARLY = np.float32(1 + 2.0**-20)
"""Factor that allows for the rounding of a distance to float32."""

_Sums = tuple[float, float, float, int, int, int]
_Rounded = tuple[np.float32, np.float32, np.float32, np.float32, np.float32]


@partial(jit, inline=True)
def is_plain(zeros: F32, half: np.float32, scratch: Scratch) -> bool:
    """Set the scales of plain rounding and mark the groups that are plainly rounded; return whether all are."""
    plain_count = _mark(zeros, half, scratch.scale, scratch.peak, scratch.stored, scratch.rounding)
    return int(plain_count) == zeros.size


@partial(jit, reorder=True)
def _mark(zeros: F32, half: np.float32, stored: F32, peak: U32, sums: F32, rounding: F32) -> np.float32:  # noqa: PLR0913, PLR0917 -- arrays
    """Set `rounding`, and return the number of groups that are plainly rounded."""
    count = _ZERO
    for lane in range(zeros.size):
        scale = _bf16(np.uint32(peak[lane]).view(np.float32) / half)
        scale = scale if abs(scale) < np.inf else _ZERO
        plain = _ONE if sums[lane + 4 * WIDTH] <= _HALF * scale * _NEARLY else _ZERO
        plain = plain if scale > _ZERO else _ZERO
        plain = plain if scale == stored[lane] else _ZERO
        plain = plain if zeros[lane] == _ZERO else _ZERO
        rounding[lane] = scale
        rounding[lane + WIDTH] = _ONE / scale if scale > _ZERO else _ZERO
        rounding[lane + 2 * WIDTH] = plain
        count += plain
    return count


@partial(jit, reorder=True)
def round_run(count: int, first: U32, second: U32, half: np.float32, rounding: F32, all_sums: F32) -> None:  # noqa: PLR0913, PLR0917 -- arrays
    """Apply plain rounding to a run of `count` weights of each group, and add the sums of its codes."""
    words = count // 8
    for j in range(first.size // LANES // 4):
        begin = j // words * LANES
        plain, sums = rounding[begin:], all_sums[begin:]
        evens, odds = first[4 * j * LANES : 4 * (j + 1) * LANES], second[4 * j * LANES : 4 * (j + 1) * LANES]
        for lane in range(LANES):
            s, inverse = plain[lane], plain[lane + WIDTH]
            part = (
                sums[lane],
                sums[lane + WIDTH],
                sums[lane + 2 * WIDTH],
                sums[lane + 3 * WIDTH],
                sums[lane + 4 * WIDTH],
            )
            for i in range(4):
                part = _round(part, evens[lane + i * LANES], s, inverse, half)
                part = _round(part, odds[lane + i * LANES], s, inverse, half)
            sums[lane], sums[lane + WIDTH], sums[lane + 2 * WIDTH] = part[:3]
            sums[lane + 3 * WIDTH], sums[lane + 4 * WIDTH] = part[3:]


@partial(jit, reorder=True)
def _round(part: _Rounded, bits: np.uint32, s: np.float32, inverse: np.float32, half: np.float32) -> _Rounded:
    """Round a weight and add it to ee, eq, qq, zero codes and saturated codes.

    |code + 1/2| equals `half` for codes at either end and for no others.
    """
    ee, eq, qq, zero, ends = part
    w = np.uint32(bits).view(np.float32)
    code = np.float32(min(max(np.rint(w * inverse), -half - _HALF), half - _HALF))
    e = w - s * code
    zero += _ONE if code == _ZERO else _ZERO
    ends += _ONE if abs(code + _HALF) == half else _ZERO
    return ee + e * e, eq + e * code, qq + code * code, zero, ends


@partial(jit, reorder=True)
def rounded_sums(size: int, rounding: F32, stored: F32, counts: U32, plain: F32) -> _Sums:
    """Return the sums of plain rounding over all groups; the error of a group whose scale is 0 counts as 0.

    They are squared errors, their removable part, errors times decoded weights, zero codes, saturated codes, and how
    many groups another scale for the stored codes would improve by more than a rounding can need.
    """
    total, removable, along, zeros, ends, resized = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for lane in range(size):
        is_plain = rounding[lane + 2 * WIDTH] > _ZERO
        error = stored[lane + WIDTH] if is_plain else plain[lane]
        eq = stored[lane + 2 * WIDTH] if is_plain else plain[lane + WIDTH]
        qq = stored[lane + 3 * WIDTH] if is_plain else plain[lane + 2 * WIDTH]
        total += np.float64(error if rounding[lane] > _ZERO else _ZERO)
        removable += np.float64(eq * eq / max(qq, _QUARTER))
        along += np.float64(rounding[lane] * eq)
        zeros += np.float64(np.float32(counts[lane]) if is_plain else plain[lane + 3 * WIDTH])
        own_eq, own_qq = stored[lane + 2 * WIDTH], max(stored[lane + 3 * WIDTH], _QUARTER)
        resized += np.float64(_ONE if own_eq * own_eq > own_qq * (_RESIZED * stored[lane] + error) else _ZERO)
        ends += np.float64(np.float32(counts[lane + WIDTH]) if is_plain else plain[lane + 4 * WIDTH])
    return total, removable, along, int(zeros), int(ends), int(resized)


@jit
def _bf16(x: np.float32) -> np.float32:
    """Round to the nearest bf16, ties to even."""
    bits = np.uint32(np.float32(x).view(np.uint32))
    bits += np.uint32(0x7FFF) + ((bits >> _SIXTEEN) & np.uint32(1))
    rounded: np.float32 = np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
