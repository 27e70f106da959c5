"""Method `imatrix`: per group, the scale with the least squared error weighted by E[x^2] of the inputs.

    1  level L and either sign:  q = clip(rint(w * L/peak * sign)),  s = <w, q>_h / <q, q>_h
    2  keep the s with the largest <w, q>_h^2 / <q, q>_h: the least error after the refit
    3  round s to bf16, and keep it if its error is less than that of minmax

h_i is the mean square of input i over the mean of its group. The largest weight may meet a small input, so levels go
beyond half the code range, which clips it, and neither sign is known to be better. A few levels of either
sign are tried, each refitted.

Groups are lanes, as in `steps`; neighbouring lanes are neighbouring groups of a row, so h is a table of all groups with
the first 64 once more behind the last: the h of a block are 64 columns of it from any group on.
"""

from typing import NamedTuple

import numpy as np

from g4convert.array_types import F32, I32, U16
from g4convert.jit import jit
from g4convert.quantization.compiled import (
    EIGHT,
    LANES,
    RUN,
    Block,
    Codes,
    Words,
    dot,
    four,
    minus,
    multiply,
    round_bf16,
    round_codes,
    times,
    unit,
)
from g4convert.quantization.scheme import MARGIN, SLACK
from g4convert.quantization.steps import baseline, finish, load

_ZERO, _ONE = np.float32(0), np.float32(1)
_BOTH = 2 * LANES  # <w, q> and <q, q> of a candidate


class InputWeights(NamedTuple):
    """Input weights of a Linear, and scratch.

    Args:
        table: float32 [r * (groups + 64)]: element i of each group, the first 64 groups once more behind the last.
        groups: groups of a row.
        h: float32 [r * 64]: scratch, of the groups of a block.
        grid: float32 [8 * c * 64]: scratch, the sums of either sign of each level, and those of one run.
    """

    table: F32
    groups: int
    h: F32
    grid: F32


def relative(h: F32, group: int) -> F32:
    """Return weights of squared errors, float32 [groups, g], with mean 1 per group, so no sum vanishes or overflows."""
    of = h.reshape(-1, group)
    mean = of.mean(axis=1, dtype=np.float64, keepdims=True)
    found: F32 = np.where(mean > 0, of / np.where(mean > 0, mean, 1), 1).astype(np.float32)
    return found


def weigh_inputs(h: F32, group: int, levels: int) -> InputWeights:
    """Make the table of a Linear.

    Args:
        h: mean square of each input [k].
        group: elements of a group.
        levels: number of levels that are tried.
    """
    of = relative(h, group)
    groups, padded = len(of), -(-group // 8) * 8
    table = np.zeros((padded, groups + LANES), np.float32)
    table[:group] = of[np.arange(groups + LANES) % groups].T
    scratch = np.zeros(padded * LANES, np.float32)
    return InputWeights(table.reshape(-1), groups, scratch, np.zeros(8 * levels * LANES, np.float32))


@jit
def quantize_imatrix(  # noqa: PLR0913, PLR0917 -- a compiled loop is given everything it touches
    words: Words, codes: Codes, block: Block, inputs: InputWeights, packed: I32, scale: U16
) -> int:
    """Quantize a tile by imatrix into the flat outputs; returns -1, or the index of the first NaN or Inf."""
    for first in range(0, scale.size, LANES):
        bad = load(words, first, block)
        if bad >= 0:
            return bad
        baseline(block.peak, codes.divisor, block.scale)
        _take(inputs, first % inputs.groups)
        _search(codes, block, inputs)
        finish(codes, block, first, packed, scale)
    return -1


@jit
def _take(inputs: InputWeights, first: int) -> None:
    """Put h of 64 groups, from `first` of a row on, beside the weights."""
    width = inputs.groups + LANES
    for i in range(inputs.h.size // LANES):
        row = inputs.table[i * width + first : i * width + first + LANES]
        out = inputs.h[i * LANES : (i + 1) * LANES]
        for lane in range(LANES):
            out[lane] = row[lane]


@jit
def _search(codes: Codes, block: Block, inputs: InputWeights) -> None:
    """Improve the scales of minmax where a search finds better ones."""
    spare, scale = block.spare, block.scale
    units, inverse, candidate = spare[:LANES], spare[LANES:_BOTH], spare[_BOTH : 3 * LANES]
    best, error = spare[3 * LANES : 4 * LANES], spare[4 * LANES :]
    for lane in range(LANES):
        units[lane] = unit(block.peak[lane])
        inverse[lane] = _ONE / scale[lane]
    _try_levels(block.w, inputs.h, units, block.levels, codes, inputs.grid)
    _refit(inputs.grid[: 2 * _BOTH * block.levels.size], units, scale, best, candidate)
    _evaluate(block.w, inputs.h, inverse, codes, block.sums)
    for lane in range(LANES):
        error[lane] = block.sums[lane]
        inverse[lane] = _ONE / candidate[lane]
    _evaluate(block.w, inputs.h, inverse, codes, block.sums)
    slack = np.float64(block.w.size // LANES) * SLACK
    for lane in range(LANES):
        new, old = np.float64(candidate[lane]), np.float64(scale[lane])
        gained = (np.float64(block.sums[lane]) + slack) * (new * new)
        if gained < (np.float64(error[lane]) - slack) * (old * old) * MARGIN:
            scale[lane] = candidate[lane]


@jit
def _try_levels(w: F32, h: F32, units: F32, levels: F32, codes: Codes, grid: F32) -> None:  # noqa: PLR0913, PLR0917
    """Sum <w, q>_h and <q, q>_h for either sign of each level; into [c, 2, 2, 64], the first half of `grid`."""
    size = 2 * _BOTH * levels.size
    done, part = grid[:size], grid[size : 2 * size]
    done[:] = 0
    for run in range(0, w.size, RUN):
        part[:] = 0
        for at in range(run, min(run + RUN, w.size), EIGHT):
            v, weight = w[at : at + EIGHT], h[at : at + EIGHT]
            for c in range(2 * levels.size):
                out = part[c * _BOTH : (c + 1) * _BOTH]
                level = levels[c // 2] if c % 2 == 0 else -levels[c // 2]
                for lane in range(LANES):
                    inverse = level * units[lane]
                    wa, wb = four(v, lane), four(v, lane + 4 * LANES)
                    qa, qb = round_codes(multiply(wa, inverse), codes), round_codes(multiply(wb, inverse), codes)
                    ha, hb = times(four(weight, lane), qa), times(four(weight, lane + 4 * LANES), qb)
                    out[lane] += dot(wa, ha) + dot(wb, hb)
                    out[lane + LANES] += dot(qa, ha) + dot(qb, hb)
        for j in range(size):
            done[j] += part[j]


@jit
def _refit(done: F32, units: F32, scale: F32, best: F32, candidate: F32) -> None:
    """Set the candidate to the best least squares scale, or to `scale` where nothing was searched."""
    best[:] = 0
    for lane in range(LANES):
        candidate[lane] = scale[lane]
    for at in range(0, done.size, _BOTH):
        row = done[at : at + _BOTH]
        for lane in range(LANES):
            qq = row[lane + LANES]
            ratio = row[lane] / (qq if qq > _ZERO else _ONE)
            gain = (ratio * units[lane]) * (row[lane] * units[lane])
            candidate[lane] = ratio if gain > best[lane] else candidate[lane]
            best[lane] = max(best[lane], gain)
    for lane in range(LANES):
        near = round_bf16(candidate[lane])
        candidate[lane] = near if near != _ZERO else scale[lane]


@jit
def _evaluate(w: F32, h: F32, inverse: F32, codes: Codes, sums: F32) -> None:
    """Try a scale per lane, given as 1/s: sums of h (u - q)^2, where u = w * (1/s)."""
    done, part = sums[:LANES], sums[LANES:_BOTH]
    done[:] = 0
    for run in range(0, w.size, RUN):
        part[:] = 0
        for at in range(run, min(run + RUN, w.size), EIGHT):
            v, weight = w[at : at + EIGHT], h[at : at + EIGHT]
            for lane in range(LANES):
                ua, ub = multiply(four(v, lane), inverse[lane]), multiply(four(v, lane + 4 * LANES), inverse[lane])
                ea, eb = minus(ua, round_codes(ua, codes)), minus(ub, round_codes(ub, codes))
                ha, hb = times(four(weight, lane), ea), times(four(weight, lane + 4 * LANES), eb)
                part[lane] += dot(ea, ha) + dot(eb, hb)
        for j in range(LANES):
            done[j] += part[j]
