"""Method `lattice`: per group, the grid that quantization-aware training left in the weights.

A group is on a grid when one step d and codes q in [-8, 7] give every weight: w = round(d * q) in the source's
dtype. Such files hold d times q with d an fp32, fp16 or bf16 number: the signed extreme over -8 (Q4_0), the
largest magnitude over 7 or 7.5, or a learned clip, under which a group need not reach code 8 at all. So:

    1  for L = 1 .. 8: are all w * L/peak near whole numbers in range? The least such L, so the largest step.
       A wrong L puts some weight at least 1/8 off; rounding of the weights moves none by more than 1/32.
    2  the d for which d * q rounds to w form an interval per weight; a d in all of them must exist. Where the
       code is 0 the weight must be.
    3  the scale is the bf16 number nearest the middle of what is left; the next one beyond the middle, where
       that one gives the source back and the nearest does not. The step is found so if it is a bf16 number.

Codes are right in either case: a scale within bf16's rounding of d moves w/s by less than 1/16. The sign is
free unless code -8 is needed on the positive side; it is then positive. A group on no grid takes the scale of
`mse`, and so does one that needs a negative scale where the scheme allows none.
"""

import numpy as np

from g4convert.array_types import F32, I32, U16
from g4convert.jit import jit
from g4convert.quantization.compiled import (
    EIGHT,
    LANES,
    Block,
    Codes,
    Four,
    Words,
    as_bits,
    as_float,
    four,
    minus,
    multiply,
    round_bf16,
    round_codes,
    unit,
)
from g4convert.quantization.scheme import LARGEST_LEVEL, OFF_GRID, WIDER
from g4convert.quantization.search import search
from g4convert.quantization.steps import baseline, finish, load

_OFF_GRID = np.float32(OFF_GRID)
_WIDER = np.float32(WIDER)

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_INF = np.float32(np.inf)
_BF16_ULP = np.uint32(0x10000)
_BOTH = 2 * LANES


@jit
def quantize_lattice(words: Words, codes: Codes, block: Block, packed: I32, scale: U16) -> int:
    """Quantize a tile by lattice into the flat outputs; returns -1, or the index of the first NaN or Inf."""
    step, misfit = block.steps[:LANES], block.steps[LANES:_BOTH]
    for first in range(0, scale.size, LANES):
        bad = load(words, first, block)
        if bad >= 0:
            return bad
        baseline(block.peak, codes.divisor, block.scale)
        _find_steps(words, codes, block)
        found = 0
        for lane in range(min(LANES, scale.size - first)):
            found += step[lane] != _ZERO
            block.counts[3] += (step[lane] != _ZERO) & (misfit[lane] == _ZERO)
        block.counts[2] += found
        if found < min(LANES, scale.size - first):
            search(codes, block)
        for lane in range(LANES):
            block.scale[lane] = step[lane] if step[lane] != _ZERO else block.scale[lane]
        finish(codes, block, first, packed, scale)
    return -1


@jit
def count_lattice(words: Words, codes: Codes, block: Block, groups: int) -> int:
    """Add the groups on a grid to the block's counts; returns -1, or the index of the first NaN or Inf."""
    for first in range(0, groups, LANES):
        bad = load(words, first, block)
        if bad >= 0:
            return bad
        baseline(block.peak, codes.divisor, block.scale)
        _find_steps(words, codes, block)
        for lane in range(min(LANES, groups - first)):
            block.counts[2] += block.steps[lane] != _ZERO
    return -1


@jit
def _find_steps(words: Words, codes: Codes, block: Block) -> None:
    """Set `steps` to the bf16 step of each lane, 0 where it is on no grid, and the weights it misses."""
    units, low, high = block.spare[:LANES], block.spare[LANES:_BOTH], block.spare[_BOTH : 3 * LANES]
    step, misfit = block.steps[:LANES], block.steps[LANES:_BOTH]
    other, other_misfit = block.steps[_BOTH : 3 * LANES], block.steps[3 * LANES :]
    for lane in range(LANES):
        units[lane] = unit(block.peak[lane]) * (block.sign[lane] if codes.signed else _ONE)
    _off_grid(block.w, units, codes, block.grid)
    _pick_level(block.grid, units)
    _intervals(block.w, units, words, low, high)
    for lane in range(LANES):
        on = (units[lane] != _ZERO) & (low[lane] <= high[lane] * _WIDER)
        middle = (low[lane] + high[lane]) * _HALF if on else _ONE
        near = round_bf16(middle)
        beyond = as_float(as_bits(near) + _BF16_ULP if near <= middle else as_bits(near) - _BF16_ULP)
        sign = (_ONE if units[lane] > _ZERO else -_ONE) if on else _ZERO
        step[lane] = near * sign
        other[lane] = beyond * sign
    _misfits(block.w, units, step, words, misfit)
    _misfits(block.w, units, other, words, other_misfit)
    for lane in range(LANES):
        if misfit[lane] > _ZERO and other_misfit[lane] == _ZERO:
            step[lane], misfit[lane] = other[lane], _ZERO
        if block.peak[lane] == _ZERO:
            step[lane], misfit[lane] = block.scale[lane], _ZERO


@jit
def _off_grid(w: F32, units: F32, codes: Codes, worst: F32) -> None:
    """Set the largest distance of w * L/peak to a code, for each L and lane; into [8, 64]."""
    worst[: LARGEST_LEVEL * LANES] = 0
    for at in range(0, w.size, EIGHT):
        v = w[at : at + EIGHT]
        for c in range(LARGEST_LEVEL):
            out, level = worst[c * LANES : (c + 1) * LANES], np.float32(c + 1)
            for lane in range(LANES):
                inverse = level * units[lane]
                ua, ub = multiply(four(v, lane), inverse), multiply(four(v, lane + 4 * LANES), inverse)
                off = max(_farthest(minus(ua, round_codes(ua, codes))), _farthest(minus(ub, round_codes(ub, codes))))
                out[lane] = max(off, out[lane])


@jit
def _farthest(a: Four) -> np.float32:
    return max(abs(a[0]), abs(a[1]), abs(a[2]), abs(a[3]))


@jit
def _pick_level(worst: F32, units: F32) -> None:
    """Multiply `units` by the least level on the grid, 0 if there is none; positive unless the level is 8."""
    for lane in range(LANES):
        level = _ZERO
        for c in range(LARGEST_LEVEL - 1, -1, -1):
            level = np.float32(c + 1) if worst[c * LANES + lane] <= _OFF_GRID else level
        units[lane] = level * (units[lane] if level == LARGEST_LEVEL else abs(units[lane]))


@jit
def _bounds(w: np.float32, half: np.uint32, words: Words) -> tuple[np.float32, np.float32]:
    """Return the least and the largest |value| * down that round to `w`."""
    bits = as_bits(abs(w) * words.down)
    most = np.uint32(half - ((bits >> words.shift) & words.odd))
    return as_float(bits - most), as_float(bits + most)


@jit
def _intervals(w: F32, units: F32, words: Words, low: F32, high: F32) -> None:
    """Set the steps that give every weight of a lane: from `low` to `high`, empty if high < low."""
    up = _ONE / words.down
    half = np.uint32(max(words.half, np.uint32(1)))  # fp32: one unit either side
    low[:] = 0
    high[:] = _INF
    for at in range(0, w.size, LANES):
        v = w[at : at + LANES]
        for lane in range(LANES):
            q = abs(np.rint(v[lane] * units[lane]))
            ratio = up / (q if q > _ZERO else _ONE)
            below, above = _bounds(v[lane], half, words)
            least = _ZERO if v[lane] == _ZERO else _INF  # where the code is 0
            below = below * ratio if q > _ZERO else least
            above = above * ratio if q > _ZERO else _INF
            low[lane] = max(low[lane], below)
            high[lane] = min(high[lane], above)


@jit
def _misfits(w: F32, units: F32, step: F32, words: Words, misfit: F32) -> None:
    """Count the weights of each lane that step * q, rounded to their dtype, does not give."""
    misfit[:] = 0
    for at in range(0, w.size, LANES):
        v = w[at : at + LANES]
        for lane in range(LANES):
            value = abs(np.rint(v[lane] * units[lane]) * step[lane]) * words.down
            below, above = _bounds(v[lane], words.half, words)
            misfit[lane] += _ONE if (value < below) | (value > above) else _ZERO
