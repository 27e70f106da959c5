"""Method `mse`: per group, the scale with the least squared error, weights counted by their magnitude.

    1  level L in scheme.levels:  u = w * L/peak * sign,  q = clip(rint(u))
    2  A = sum |u| u q,  B = sum |u| q^2;  keep the L whose refit scale s(L) = A/B * peak/L * sign leaves the
       least sum |w| (w - s q)^2: the largest A^2 / (B L^3)
    3  round s(L) to bf16, and keep it if its plain squared error is less than that of minmax

Large weights meet large inputs. The plain squared error clips them, to round the many small ones more finely, which
costs a real model more than it wins: at g128 more than minmax costs. |w| was chosen by KL on such a model.

The sign gives the extra code -8 to the side of the largest weight. Searching the other sign as well, as a
2x12-candidate search does, won 0.00 to 0.07 points of relative error for twice the time. Ranking by the error
*after* the refit needs no second pass over the candidates and lets few levels do.

Never worse than minmax: step 3 asks for a win larger than what fp32 can have lost in either sum.
"""

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
    absolute,
    dot,
    four,
    multiply,
    round_bf16,
    round_codes,
    times,
    unit,
)
from g4convert.quantization.scheme import MARGIN, SLACK
from g4convert.quantization.steps import baseline, evaluate, finish, load

_ZERO, _ONE = np.float32(0), np.float32(1)
_BOTH = 2 * LANES  # the sums A and B of a level


@jit
def quantize_mse(words: Words, codes: Codes, block: Block, packed: I32, scale: U16) -> int:
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
    _refit(block.grid, block.levels, best, candidate)
    for lane in range(LANES):
        found = candidate[lane] * (block.peak[lane] * (block.sign[lane] if codes.signed else _ONE))
        candidate[lane] = round_bf16(found) if best[lane] > _ZERO else scale[lane]
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
    """Sum |u| u q and |u| q^2 for each level; into [c, 2, 64], the first half of `grid`.

    u q is not negative, so |u| q^2 = |q| u q.
    """
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
                    ua, ub = multiply(four(v, lane), inverse), multiply(four(v, lane + 4 * LANES), inverse)
                    qa, qb = round_codes(ua, codes), round_codes(ub, codes)
                    ta, tb = times(ua, qa), times(ub, qb)
                    out[lane] += dot(absolute(ua), ta) + dot(absolute(ub), tb)
                    out[lane + LANES] += dot(absolute(qa), ta) + dot(absolute(qb), tb)
        for j in range(size):
            done[j] += part[j]


@jit
def _refit(grid: F32, levels: F32, best: F32, relative: F32) -> None:
    """Find the level with the largest gain: `best`, 0 where nothing was searched; `relative`: scale over peak."""
    best[:] = _ZERO
    for c in range(levels.size):
        row, cube = grid[c * _BOTH : (c + 1) * _BOTH], levels[c] * levels[c] * levels[c]
        for lane in range(LANES):
            b = row[lane + LANES]
            ratio = row[lane] / (b if b > _ZERO else _ONE)
            gain = ratio * row[lane] / cube
            relative[lane] = ratio / levels[c] if gain > best[lane] else relative[lane]
            best[lane] = max(best[lane], gain)
