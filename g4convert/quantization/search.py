"""Method `mse`: per group, the scale with the least squared error.

    1  level L in scheme.levels:  q = clip(rint(w * L/peak * sign)),  s(L) = <w, q> / <q, q>
    2  keep the L whose refit scale leaves the least error: the largest <w, q>^2 / <q, q>
    3  round s(L) to bf16, and keep it if its error is less than that of minmax

The sign gives the extra code -8 to the side of the largest weight. Searching the other sign as well, as a
2x12-candidate search does, won 0.00 to 0.07 points of relative error for twice the time. Ranking by the error
*after* the refit, which needs no second pass, won 0.1 points; 10 levels then do for 12. A second refit wins 0.02.

Never worse than minmax: step 3 asks for a win larger than what fp32 can have lost in either sum.
"""

import numpy as np
from numpy.typing import NDArray

from g4convert.jit import jit
from g4convert.quantization.compiled import (
    EIGHT,
    F32,
    LANES,
    RUN,
    Block,
    Codes,
    Words,
    dot,
    four,
    round_bf16,
    rounded,
    scaled,
    unit,
)
from g4convert.quantization.scheme import MARGIN, SLACK
from g4convert.quantization.steps import baseline, evaluate, finish, load

__all__ = ["quantize_mse", "search"]

_ZERO, _ONE = np.float32(0), np.float32(1)
_BOTH = 2 * LANES  # <w, q> and <q, q> of a candidate


@jit
def quantize_mse(words: Words, codes: Codes, block: Block, packed: NDArray[np.int32], scale: NDArray[np.uint16]) -> int:
    """Quantize a tile by mse into the flat outputs; returns -1, or the index of the first NaN or Inf."""
    for first in range(0, scale.size, LANES):
        bad = load(words, first, block)
        if bad >= 0:
            return bad
        baseline(block.peak, codes.divisor, block.scale)
        search(codes, block)
        finish(codes, block, first, packed, scale)
    return -1


@jit
def search(codes: Codes, block: Block) -> None:
    """Improve the scales of minmax where a search finds better ones."""
    spare, scale = block.spare, block.scale
    units, inverse, candidate = spare[:LANES], spare[LANES:_BOTH], spare[_BOTH : 3 * LANES]
    best, error = spare[3 * LANES : 4 * LANES], spare[4 * LANES :]
    for lane in range(LANES):
        units[lane] = unit(block.peak[lane]) * (block.sign[lane] if codes.signed else _ONE)
    _try_levels(block.w, units, block.levels, codes, block.grid)
    _refit(block.grid[: _BOTH * block.levels.size], units, scale, best, candidate)
    for lane in range(LANES):
        inverse[lane] = _ONE / scale[lane]
    evaluate(block.w, inverse, codes, block.sums)
    for lane in range(LANES):
        error[lane] = block.sums[lane]
        inverse[lane] = _ONE / candidate[lane]
    evaluate(block.w, inverse, codes, block.sums)
    slack = np.float64(block.w.size // LANES) * SLACK
    for lane in range(LANES):
        new, old = np.float64(candidate[lane]), np.float64(scale[lane])
        gained = (np.float64(block.sums[lane]) + slack) * (new * new)
        if gained < (np.float64(error[lane]) - slack) * (old * old) * MARGIN:
            scale[lane] = candidate[lane]


@jit
def _try_levels(w: F32, units: F32, levels: F32, codes: Codes, grid: F32) -> None:
    """Sum <w, q> and <q, q> for each level; into [c, 2, 64], the first half of `grid`."""
    size = _BOTH * levels.size
    done, part = grid[:size], grid[size : 2 * size]
    done[:] = 0
    for run in range(0, w.size, RUN):
        part[:] = 0
        for at in range(run, min(run + RUN, w.size), EIGHT):
            v = w[at : at + EIGHT]
            for c in range(levels.size):
                out = part[c * _BOTH : (c + 1) * _BOTH]
                for lane in range(LANES):
                    inverse = levels[c] * units[lane]
                    wa, wb = four(v, lane), four(v, lane + 4 * LANES)
                    qa, qb = rounded(scaled(wa, inverse), codes), rounded(scaled(wb, inverse), codes)
                    out[lane] += dot(wa, qa) + dot(wb, qb)
                    out[lane + LANES] += dot(qa, qa) + dot(qb, qb)
        for j in range(size):
            done[j] += part[j]


@jit
def _refit(done: F32, units: F32, scale: F32, best: F32, candidate: F32) -> None:
    """Set the candidate to the best least squares scale, or to `scale` where nothing was searched.

    The gain <w, q>^2 / <q, q> is taken in units of the peak.
    """
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
        candidate[lane] = round_bf16(candidate[lane])
