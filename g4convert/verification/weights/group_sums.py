"""Compiled inner loop of the weights level: adds up sums over the groups of a packed weight and of its source.

For each group of g weights w with codes q (zero point subtracted) and scale s, four sums give all results:

    ww = sum w*w    ee = sum e*e    eq = sum e*q    qq = sum q*q,    where e = w - s*q
    squared error        ee
    its removable part   eq^2 / qq: the error that the best scale for the same codes would save; nearly 0 unless the
                         scale belongs to other codes
    along the codes      s*eq: the sum of errors times decoded weights; over a whole weight, it says how much too small
                         the weight is

The error to expect depends on the weights. So every group is compared with its plain rounding: to the nearest code,
with the scale that puts the largest weight at the end of the range. No method that only looks at weights does worse.

Sums over a group are float32, all others float64. `lanes` has the layout, `stored_codes` and `plain_rounding` have the
loops. The decoder is this package's own: compressed-tensors' decoder builds whole tensors, which takes
ten times as long; `oracle` compares the two.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from g4convert.array_types import F32, F64, I64, U32
from g4convert.jit import jit
from g4convert.verification.weights.lanes import LANES, RUN, WIDTH, GroupPairs, Scratch, blocks_of, load, scratch_for
from g4convert.verification.weights.plain_rounding import is_plain, round_run, rounded_sums
from g4convert.verification.weights.stored_codes import measure_run

_ZERO, _QUARTER, _HALF = np.float32(0), np.float32(0.25), np.float32(0.5)

_Added = tuple[float, float, float, int, int, int]


class Limits(NamedTuple):
    """Limits of a group's relative squared error: exact up to `exact`; too large for any rounding above `lost`."""

    exact: np.float32
    lost: np.float32


class Sums(NamedTuple):
    """Sums over tiles.

    Args:
        totals: float64 [7]: squared weights; squared errors, their removable part, errors times decoded weights; the
            same three of plain rounding.
        counts: int64 [9]: exact groups, lost groups, zero codes, saturated codes, scales that are not finite, zero
            scales of groups with nonzero weights; zero codes, saturated codes of plain rounding; resized groups.
    """

    totals: F64
    counts: I64


@jit
def measure_groups(groups: GroupPairs, num_bits: int, limits: Limits, sums: Sums) -> None:
    """Add the sums over all groups to `sums`."""
    half = np.float32((1 << (num_bits - 1)) - _HALF)
    size = groups.scale.size
    pairs, words = groups.source.size // size, groups.words.size // size
    g = 2 * pairs
    step, scratch = blocks_of(g) * LANES, scratch_for(g, words, groups.source)
    for begin in range(0, size, step):
        end = min(size, begin + step)
        blocks = (end - begin + LANES - 1) // LANES
        some = GroupPairs(
            groups.source[begin * pairs : end * pairs],
            groups.words[begin * words : end * words],
            groups.scale[begin:end],
            groups.zeros[begin:end],
        )
        _start(some.scale, some.zeros, half, scratch)
        for first_weight in range(0, g, RUN):
            load(some, first_weight, min(RUN, g - first_weight), scratch)
            measure_run(blocks, min(RUN, g - first_weight), num_bits, half, scratch)
        stored = _add_groups(some.scale, limits, scratch.stored, scratch.counts, sums)
        if is_plain(some.zeros, half, scratch):
            _add_plain(stored, sums)
            continue
        scratch.plain[:] = 0
        for first_weight in range(0, g, RUN):
            if g > RUN:  # else the only run is still there
                load(some, first_weight, min(RUN, g - first_weight), scratch)
            count = min(RUN, g - first_weight)
            first = scratch.first[: blocks * LANES * count // 2]
            round_run(count, first, scratch.second, half, scratch.rounding, scratch.plain)
        _add_plain(rounded_sums(end - begin, scratch.rounding, scratch.stored, scratch.counts, scratch.plain), sums)


@partial(jit, inline=True)
def _start(scales: F32, zeros: F32, half: np.float32, scratch: Scratch) -> None:
    """Take the scales and zero points of the groups, and set their sums to 0."""
    scratch.stored[:] = 0
    scratch.peak[:] = 0
    scratch.counts[:] = 0
    for lane in range(scales.size):
        scratch.scale[lane] = scales[lane] if np.isfinite(scales[lane]) else _ZERO
        scratch.offset[lane] = half + _HALF + zeros[lane]


@partial(jit, reorder=True)
def _add_groups(scales: F32, limits: Limits, stored: F32, counts: U32, sums: Sums) -> _Added:
    """Add the sums of the stored codes of each group; return what `_add_plain` takes of them."""
    signal, total, removable, along = 0.0, 0.0, 0.0, 0.0
    exact, lost, zeros, ends, infinite, zero = 0, 0, 0, 0, 0, 0
    for lane in range(scales.size):
        ww, error = stored[lane], stored[lane + WIDTH]
        eq, qq = stored[lane + 2 * WIDTH], stored[lane + 3 * WIDTH]
        signal += np.float64(ww)
        total += np.float64(error)
        removable += np.float64(eq * eq / max(qq, _QUARTER))  # qq is 0 or at least 1
        along += np.float64(scales[lane] * eq)
        exact += error <= limits.exact * ww
        lost += error > limits.lost * ww
        zeros += int(counts[lane])
        ends += int(counts[lane + WIDTH])
        infinite += not np.isfinite(scales[lane])
        zero += scales[lane] == _ZERO and ww > _ZERO
    sums.totals[0] += signal
    sums.totals[1] += total
    sums.totals[2] += removable
    sums.totals[3] += along
    sums.counts[0] += exact
    sums.counts[1] += lost
    sums.counts[2] += zeros
    sums.counts[3] += ends
    sums.counts[4] += infinite
    sums.counts[5] += zero
    return total, removable, along, zeros, ends, 0  # a group that is plainly rounded is not resized


@jit
def _add_plain(added: _Added, sums: Sums) -> None:
    """Add squared errors, their removable part, errors times decoded weights, zero, saturated codes, resized groups."""
    total, removable, along, zeros, ends, resized = added
    sums.totals[4] += total
    sums.totals[5] += removable
    sums.totals[6] += along
    sums.counts[6] += zeros
    sums.counts[7] += ends
    sums.counts[8] += resized
