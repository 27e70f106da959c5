"""Compiled inner loop: decodes the stored codes of a run of weights and adds up the sums of each group."""

from functools import partial
from typing import Final

import numpy as np

from g4convert.array_types import F32, U32
from g4convert.jit import jit
from g4convert.verification.weights.lanes import LANES, WIDTH, Scratch

_NIBBLE: Final = 4
_1, _2, _4, _8 = np.uint32(1), np.uint32(2), np.uint32(4), np.uint32(8)
_SIXTEEN, _NIBBLES, _MAGNITUDE = np.uint32(16), np.uint32(0x0F0F0F0F), np.uint32(0x7FFFFFFF)
_HALF = np.float32(0.5)

_Part = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.uint32]


@partial(jit, inline=True)
def measure_run(blocks: int, count: int, num_bits: int, half: np.float32, scratch: Scratch) -> None:
    """Add the sums of a run of `count` weights of each group of some blocks."""
    width = _NIBBLE if num_bits == _NIBBLE else 8  # as `lanes.width_of`
    words = scratch.moved[: blocks * LANES * count * width // 32]
    pairs, scaling = (scratch.first, scratch.second), (scratch.scale, scratch.offset)
    if num_bits == _NIBBLE:
        _add_nibbles(count, words, pairs, scaling, half, scratch.stored, scratch.peak)
        _count_nibbles(count, words, scratch.counts)
    else:
        _add_bytes(count, words, pairs, scaling, half, scratch.stored, scratch.peak)
        _count_bytes(count, num_bits, words, scratch.counts)


@partial(jit, reorder=True)
def _add_nibbles(  # noqa: PLR0913, PLR0917 -- arrays
    count: int,
    words: U32,
    pairs: tuple[U32, U32],
    scaling: tuple[F32, F32],
    half: np.float32,
    all_sums: F32,
    peaks: U32,
) -> None:
    """Add the 8 weights of each word of 4-bit codes to the sums."""
    each = count // 8
    for j in range(words.size // LANES):
        begin = j // each * LANES
        scale, offset, sums, peak = scaling[0][begin:], scaling[1][begin:], all_sums[begin:], peaks[begin:]
        stored = words[j * LANES : (j + 1) * LANES]
        evens = pairs[0][4 * j * LANES : 4 * (j + 1) * LANES]
        odds = pairs[1][4 * j * LANES : 4 * (j + 1) * LANES]
        for lane in range(LANES):
            s, word = scale[lane], stored[lane]
            top = s * (half - _HALF)
            part = (
                sums[lane],
                sums[lane + WIDTH],
                sums[lane + 2 * WIDTH],
                sums[lane + 3 * WIDTH],
                sums[lane + 4 * WIDTH],
                peak[lane],
            )
            for i in range(4):
                low = np.float32(np.int32((word >> np.uint32(8 * i)) & np.uint32(15))) - offset[lane]
                high = np.float32(np.int32((word >> np.uint32(8 * i + 4)) & np.uint32(15))) - offset[lane]
                part = _add(part, evens[lane + i * LANES], low, s, top)
                part = _add(part, odds[lane + i * LANES], high, s, top)
            sums[lane], sums[lane + WIDTH], sums[lane + 2 * WIDTH] = part[:3]
            sums[lane + 3 * WIDTH], sums[lane + 4 * WIDTH], peak[lane] = part[3:]


@partial(jit, reorder=True)
def _add_bytes(  # noqa: PLR0913, PLR0917 -- arrays
    count: int,
    words: U32,
    pairs: tuple[U32, U32],
    scaling: tuple[F32, F32],
    half: np.float32,
    all_sums: F32,
    peaks: U32,
) -> None:
    """Add the 4 weights of each word of codes in bytes to the sums."""
    each = count // 4
    for j in range(words.size // LANES):
        begin = j // each * LANES
        scale, offset, sums, peak = scaling[0][begin:], scaling[1][begin:], all_sums[begin:], peaks[begin:]
        stored = words[j * LANES : (j + 1) * LANES]
        evens = pairs[0][2 * j * LANES : 2 * (j + 1) * LANES]
        odds = pairs[1][2 * j * LANES : 2 * (j + 1) * LANES]
        for lane in range(LANES):
            s, word = scale[lane], stored[lane]
            top = s * (half - _HALF)
            part = (
                sums[lane],
                sums[lane + WIDTH],
                sums[lane + 2 * WIDTH],
                sums[lane + 3 * WIDTH],
                sums[lane + 4 * WIDTH],
                peak[lane],
            )
            for i in range(2):
                low = np.float32(np.int32((word >> np.uint32(16 * i)) & np.uint32(255))) - offset[lane]
                high = np.float32(np.int32((word >> np.uint32(16 * i + 8)) & np.uint32(255))) - offset[lane]
                part = _add(part, evens[lane + i * LANES], low, s, top)
                part = _add(part, odds[lane + i * LANES], high, s, top)
            sums[lane], sums[lane + WIDTH], sums[lane + 2 * WIDTH] = part[:3]
            sums[lane + 3 * WIDTH], sums[lane + 4 * WIDTH], peak[lane] = part[3:]


@partial(jit, reorder=True)
def _add(part: _Part, bits: np.uint32, q: np.float32, s: np.float32, top: np.float32) -> _Part:
    """Add a weight and its code to ww, ee, eq, qq, the largest distance and the peak.

    No code is nearer to a weight beyond the largest code's value, `top`: such a weight is taken to lie at `top`.
    """
    ww, ee, eq, qq, far, peak = part
    w, value = np.uint32(bits).view(np.float32), s * q
    e = w - value
    return (
        ww + w * w,
        ee + e * e,
        eq + e * q,
        qq + q * q,
        max(far, abs(min(w, top) - value)),
        max(peak, np.uint32(bits & _MAGNITUDE)),
    )


@jit
def _count_nibbles(count: int, words: U32, counts: U32) -> None:
    """Count zero codes and saturated codes: the lowest bit of a code becomes 1 where it is not one of them.

    A code of 0 is stored as 1000, and no two neighbours differ in the bits of a saturated code.
    """
    each = count // 8
    for j in range(words.size // LANES):
        tally, stored = counts[j // each * LANES :], words[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            word = stored[lane]
            zero, ends = np.uint32(word ^ np.uint32(0x88888888)), np.uint32(word ^ np.uint32(word >> _1))
            zero = np.uint32(zero | np.uint32(zero >> _1))
            zero = np.uint32(zero | np.uint32(zero >> _2))
            ends = np.uint32(ends | np.uint32(np.uint32(ends >> _1) | np.uint32(ends >> _2)))
            tally[lane] += _count_zero_bits(np.uint32(zero & np.uint32(0x11111111)), _8)
            tally[lane + WIDTH] += _count_zero_bits(np.uint32(ends & np.uint32(0x11111111)), _8)


@jit
def _count_bytes(count: int, num_bits: int, words: U32, counts: U32) -> None:
    """Count zero codes and saturated codes, as `_count_nibbles` does; a code is the low bits of a byte."""
    each = count // 4
    middle = np.uint32(0x01010101 << (num_bits - 1))
    neighbours = np.uint32(0x01010101 * ((1 << (num_bits - 1)) - 1))  # two bits of the same code
    for j in range(words.size // LANES):
        tally, stored = counts[j // each * LANES :], words[j * LANES : (j + 1) * LANES]
        for lane in range(LANES):
            word = stored[lane]
            zero, ends = np.uint32(word ^ middle), np.uint32(np.uint32(word ^ np.uint32(word >> _1)) & neighbours)
            zero = np.uint32(zero | np.uint32(zero >> _1))
            zero = np.uint32(zero | np.uint32(zero >> _2))
            zero = np.uint32(zero | np.uint32(zero >> _4))
            ends = np.uint32(ends | np.uint32(ends >> _1))
            ends = np.uint32(ends | np.uint32(ends >> _2))
            ends = np.uint32(ends | np.uint32(ends >> np.uint32(3)))
            tally[lane] += _count_zero_bits(np.uint32(zero & np.uint32(0x01010101)), _4)
            tally[lane + WIDTH] += _count_zero_bits(np.uint32(ends & np.uint32(0x01010101)), _4)


@jit
def _count_zero_bits(flags: np.uint32, size: np.uint32) -> np.uint32:
    """Return `size` less the number of bits that are 1, of the lowest bits of nibbles."""
    sums = np.uint32(np.uint32(flags & _NIBBLES) + np.uint32(np.uint32(flags >> _4) & _NIBBLES))
    sums = np.uint32(sums + np.uint32(sums >> _SIXTEEN))
    return np.uint32(size - np.uint32(np.uint32(sums + np.uint32(sums >> _8)) & np.uint32(15)))
