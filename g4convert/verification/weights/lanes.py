"""Layout of the compiled inner loop: groups of weights, transposed into lanes.

64 groups at a time, and at most 128 weights of each, lie in lanes: weight i of group `lane` at [64 * i + lane]. So
every loop over lanes is made of whole vectors, for any group size. Weights come in pairs, as words of twice their size,
and codes in packed words of 4 or 8 bits a code; codes of other bits are put into bytes first. The transposition rotates
the bits of an index, which is 6 bits for the lane and then some for the element: three rotations by 2 bits exchange
them.
"""

from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I32, U8, U32
from g4convert.jit import jit

LANES: Final = 64
RUN: Final = 128
"""Largest number of weights of a group that are in lanes at once."""
WIDTH: Final = 4 * LANES
"""Largest number of groups at once: small groups come in several blocks of 64, as each call has its price."""
_WHOLE: Final = 8
"""Groups are padded to a multiple of this many weights, which end with a word."""
_BF16_PAIR: Final = 4
"""Bytes of a pair of bf16 weights."""
_SIXTEEN, _THIRTY_TWO, _UPPER = np.uint32(16), np.uint64(32), np.uint32(0xFFFF0000)


class GroupPairs(NamedTuple):
    """Groups of a packed weight and of its source, one after the other; g is a multiple of 8.

    Args:
        source: pairs of weights, [groups * g / 2]: uint32 for bf16, uint64 for fp32; the first one low.
        words: uint32 [groups * g * width / 32], packed words, `width_of(num_bits)` bits a code; the first code low.
        scale: float32 [groups].
        zeros: float32 [groups], zero points; 0 for symmetric weights.
    """

    source: NDArray[Any]
    words: U32
    scale: F32
    zeros: F32


class Scratch(NamedTuple):
    """Scratch memory for up to 4 blocks of 64 groups; a run is up to 128 weights of each.

    Args:
        pairs, turned: the source's dtype, [blocks * 64 * run / 2]: pairs on their way into lanes.
        words, moved: uint32 [blocks * 64 * words of a run]: packed words on their way into lanes; `moved` has them.
        first, second: uint32 [blocks * 64 * run / 2]: bits of the weights of each pair as float32, in lanes.
        scale: float32 [256], the stored scales; 0 where they are not finite.
        offset: float32 [256], what is subtracted from a stored code: half the range, and the zero point.
        stored: float32 [5 * 256]: ww, ee, eq, qq, and the largest distance of a weight from its code.
        peak: uint32 [256], bits of the largest magnitude as float32.
        counts: uint32 [2 * 256]: zero codes, saturated codes.
        rounding: float32 [3 * 256]: scale of plain rounding, 0 if it is not finite; its inverse, or 0; 1 if the group
            is plainly rounded, else 0.
        plain: float32 [5 * 256]: ee, eq, qq, zero codes and saturated codes of plain rounding.
    """

    pairs: NDArray[Any]
    turned: NDArray[Any]
    words: U32
    moved: U32
    first: U32
    second: U32
    scale: F32
    offset: F32
    stored: F32
    peak: U32
    counts: U32
    rounding: F32
    plain: F32


def groups_of(source: NDArray[Any], words: I32, scale: F32, zeros: F32, num_bits: int) -> tuple[GroupPairs, int]:
    """Return the groups of some rows, and the number of weights that were added to each to make it end with a word.

    Args:
        source: bits of the weights, [r, k]: uint16 for bf16, uint32 for fp32.
        words: int32 [r, words], as stored.
        scale: float32 [r, groups].
        zeros: float32 [r, groups], zero points; [0, 0] for symmetric weights.
        num_bits: bits of a code.
    """
    points = zeros if zeros.size else np.zeros_like(scale)
    g = source.size // scale.size
    if width_of(num_bits) != num_bits:
        words = _widen_to_bytes(words, source.shape[1], num_bits)
    padding = -g % _WHOLE
    if padding:
        source, words = _pad(source, words, points, num_bits, padding)
    pairs = np.uint32 if source.dtype == np.uint16 else np.uint64
    flat = source.reshape(-1).view(pairs), words.reshape(-1).view(np.uint32)
    return GroupPairs(*flat, scale.reshape(-1), points.reshape(-1)), padding


def width_of(num_bits: int) -> int:
    """Return the bits that a code takes in lanes: 4, or 8 for all others."""
    return 4 if num_bits == 4 else 8


def codes_of(words: U32, count: int, num_bits: int) -> U8:
    """Return codes as stored, uint8 [r, count], from words [r, words]; a code may cross from one word into the next."""
    bit = np.arange(count) * num_bits
    pairs = words.astype(np.uint64)
    pairs[:, :-1] |= pairs[:, 1:] << _THIRTY_TWO
    codes: U8 = (pairs[:, bit // 32] >> (bit % 32).astype(np.uint64)).astype(np.uint8) & np.uint8((1 << num_bits) - 1)
    return codes


def _widen_to_bytes(words: I32, k: int, num_bits: int) -> I32:
    """Return words with a byte for each code: int32 [r, ceil(k / 4)]."""
    codes = np.zeros((len(words), -(-k // 4) * 4), np.uint8)
    codes[:, :k] = codes_of(words.view(np.uint32), k, num_bits)
    return codes.view(np.int32)


def _pad(
    source: NDArray[Any], words: I32, zeros: F32, num_bits: int, padding: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return source and words with weights of 0 behind each group, and codes that say so."""
    (r, k), groups = source.shape, zeros.shape[1]
    g = k // groups
    width = width_of(num_bits)
    shifts = np.arange(0, 32, width, dtype=np.uint32)
    stored = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << width) - 1)
    codes = np.empty((r, groups, g + padding), np.uint32)
    codes[..., :g] = stored.reshape(r, -1)[:, :k].reshape(r, groups, g)
    codes[..., g:] = (zeros[..., None] + (1 << (num_bits - 1))).astype(np.uint32)
    wide = np.zeros(codes.shape, source.dtype)
    wide[..., :g] = source.reshape(r, groups, g)
    return wide.reshape(r, -1), np.bitwise_or.reduce(codes.reshape(r, -1, shifts.size) << shifts, -1)


@jit
def blocks_of(g: int) -> int:
    """Return the number of blocks of 64 groups at once."""
    return max(1, min(WIDTH // LANES, RUN // g))


@jit
def scratch_for(g: int, words: int, source: NDArray[Any]) -> Scratch:
    """Return scratch memory for groups of g weights in `words` words, whose pairs are like those of `source`."""
    size, pairs, words = blocks_of(g) * LANES, min(g, RUN) // 2, min(g, RUN) * words // g
    return Scratch(
        np.empty(size * pairs, source.dtype),
        np.empty(size * pairs, source.dtype),
        np.empty(size * words, np.uint32),
        np.empty(size * words, np.uint32),
        np.empty(size * pairs, np.uint32),
        np.empty(size * pairs, np.uint32),
        np.zeros(WIDTH, np.float32),
        np.zeros(WIDTH, np.float32),
        np.zeros(5 * WIDTH, np.float32),
        np.zeros(WIDTH, np.uint32),
        np.zeros(2 * WIDTH, np.uint32),
        np.zeros(3 * WIDTH, np.float32),
        np.zeros(5 * WIDTH, np.float32),
    )


@partial(jit, inline=True)
def load(groups: GroupPairs, at: int, count: int, scratch: Scratch) -> None:
    """Put weights [at, at + count) of each group, and their words, in lanes."""
    size = groups.scale.size
    pairs, words = groups.source.size // size, groups.words.size // size
    some, each = count // 2, count * words // (2 * pairs)
    _rotate_twice(groups.source, pairs, at // 2, some, scratch.pairs, scratch.turned)
    _rotate_twice(groups.words, words, at * words // (2 * pairs), each, scratch.words, scratch.moved)
    for block in range((size + LANES - 1) // LANES):
        begin, end = block * LANES * some, (block + 1) * LANES * some
        _split(scratch.pairs[begin:end], scratch.first[begin:end], scratch.second[begin:end])
        begin, end = block * LANES * each, (block + 1) * LANES * each
        _rotate(scratch.words[begin:end], scratch.moved[begin:end])


@jit
def _rotate_twice(flat: NDArray[Any], each: int, at: int, count: int, out: NDArray[Any], spare: NDArray[Any]) -> None:  # noqa: PLR0913, PLR0917 -- arrays
    """Rotate the indices of elements [at, at + count) of the groups twice; elements of groups that lack are 0.

    Args:
        flat: the elements of all groups, `each` of them in a group.
        each: number of elements of a group.
        at: number of the first element to take.
        count: number of elements to take.
        out: takes the result, in blocks of 64 groups.
        spare: scratch memory.
    """
    size = LANES * count
    for block in range((flat.size + LANES * each - 1) // (LANES * each)):
        part, begin = flat[block * LANES * each : (block + 1) * LANES * each], block * size
        once, twice = spare[begin : begin + size], out[begin : begin + size]
        if count == each and part.size == size:
            _rotate(part, once)
        else:
            _gather(part[at:], each, count, twice)
            _rotate(twice, once)
        _rotate(once, twice)


@jit
def _gather(flat: NDArray[Any], each: int, count: int, out: NDArray[Any]) -> None:
    """Copy the first `count` elements of each group; the rest of `out` is 0."""
    filled = 0
    for start in range(0, flat.size, each):
        source, target = flat[start : start + count], out[filled : filled + count]
        for j in range(count):
            target[j] = source[j]
        filled += count
    out[filled:] = 0


@jit
def _rotate(source: NDArray[Any], out: NDArray[Any]) -> None:
    m = source.size // 4
    for j in range(m):
        for i in range(4):
            out[4 * j + i] = source[j + i * m]


@jit
def _split(pairs: NDArray[Any], first: U32, second: U32) -> None:
    """Rotate indices once more, and split pairs into the bits of their weights as float32."""
    m = pairs.size // 4
    if pairs.itemsize == _BF16_PAIR:
        for j in range(m):
            for i in range(4):
                pair = np.uint32(pairs[j + i * m])
                first[4 * j + i] = np.uint32(pair << _SIXTEEN)
                second[4 * j + i] = np.uint32(pair & _UPPER)
    else:
        for j in range(m):
            for i in range(4):
                wide = np.uint64(pairs[j + i * m])
                first[4 * j + i] = np.uint32(wide)
                second[4 * j + i] = np.uint32(wide >> _THIRTY_TWO)
