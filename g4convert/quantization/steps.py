"""The steps every method shares, compiled: load, minmax scales, the trial of a scale, codes and packing.

Layout. A tile [n, k] is a flat run of groups, so rows play no part: LANES = 64 groups at a time become a
block, element i of group `lane` at `w[64 * i + lane]`. Every inner loop runs over lanes: whole vectors for any
group size, no horizontal sums, and a result cannot depend on the vector width. The transposition rotates the
bits of the index (lane, i), 3 at a time: `out[8j + r] = in[j + r * size/8]`, twice. LLVM makes interleaving
shuffles of it: 0.1 ns per element and pass, against 0.7 for strided loads.

Order of sums, the same in `torch_search`: 8 elements as a tree, 16 such sums one after the other into a run of
128, then the runs one after the other. No fast-math, no fused multiply-add. A group is padded with zero weights
to a multiple of 8; they add nothing. So a group's bits are the same on any machine.

Dimensionless errors. A trial divides by the scale first, u = w/s, and sums (u - q)^2 in fp32. No square of a
weight is formed, so nothing overflows or vanishes for weights of any size; sums over groups are float64.

Loops keep to what LLVM vectorises: flat arrays with constant strides (rows of unknown stride need more alias
checks than it makes), what an inner loop adds up in one array, codes as int8 first and packed in a second pass.

What it refuses: NaN and infinity, found by the two integer maxima that give the largest magnitude anyway.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I8, I32, U16, U32
from g4convert.jit import jit
from g4convert.quantization.compiled import (
    EIGHT,
    LANES,
    RUN,
    Block,
    Codes,
    Words,
    as_bits,
    as_float,
    divide,
    dot,
    four,
    minus,
    multiply,
    round_bf16,
    round_codes,
)

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_NEGATIVE = np.uint32(0x80000000)
_ZERO, _ONE = np.float32(0), np.float32(1)
_EPS = np.float32(2.0**-23)  # fp32's; what compressed-tensors puts for a scale of 0
_TWO_TO_112 = np.float32(2.0**112)
_NIBBLE = 4


@jit
def quantize_minmax(words: Words, codes: Codes, block: Block, packed: I32, scale: U16) -> int:
    """Quantize a tile by minmax into the flat outputs; returns -1, or the index of the first NaN or Inf."""
    for first in range(0, scale.size, LANES):
        bad = load(words, first, block)
        if bad >= 0:
            return bad
        baseline(block.peak, codes.divisor, block.scale)
        finish(codes, block, first, packed, scale)
    return -1


@jit
def load(words: Words, first: int, block: Block) -> int:
    """Load 64 groups from `first` on, their peaks and signs; returns -1, or the index of the first NaN or Inf."""
    start, size = first * words.g, block.loaded.size
    if start + size <= words.flat.size:
        _rotate(words.flat[start : start + size], block.turned)
    else:
        rest = words.flat.size - start
        block.loaded[:] = 0
        for j in range(rest):
            block.loaded[j] = words.flat[start + j]
        _rotate(block.loaded, block.turned)
    _rotate(block.turned, block.loaded)
    _decode(block.loaded, words.kind, block.bits)
    if _peaks(block.bits, block.extremes, block.peak, block.sign) < words.limit:
        return -1
    for lane in range(LANES):
        for i in range(words.g):
            if block.bits[LANES * i + lane] & _MAGNITUDE >= words.limit:
                return start + lane * words.g + i
    return -1


@jit
def _rotate(source: NDArray[Any], out: NDArray[Any]) -> None:
    m = source.size // 8
    for j in range(m):
        out[8 * j] = source[j]
        out[8 * j + 1] = source[j + m]
        out[8 * j + 2] = source[j + 2 * m]
        out[8 * j + 3] = source[j + 3 * m]
        out[8 * j + 4] = source[j + 4 * m]
        out[8 * j + 5] = source[j + 5 * m]
        out[8 * j + 6] = source[j + 6 * m]
        out[8 * j + 7] = source[j + 7 * m]


@jit
def _decode(source: NDArray[Any], kind: int, bits: U32) -> None:
    if kind == 0:
        for j in range(source.size):
            bits[j] = np.uint32(source[j]) << np.uint32(16)
    elif kind == 1:
        for j in range(source.size):
            word = np.uint32(source[j])
            magnitude = as_float((word & np.uint32(0x7FFF)) << np.uint32(13)) * _TWO_TO_112
            bits[j] = as_bits(magnitude) | ((word & np.uint32(0x8000)) << np.uint32(16))
    else:
        for j in range(source.size):
            bits[j] = source[j]


@jit
def _peaks(bits: U32, extremes: U32, peak: F32, sign: F32) -> np.uint32:
    """Peak and sign of each lane; returns the bits of the largest peak.

    As integers, positive fp32 are in order, with the negative ones below them (int32) or above (uint32).
    """
    extremes[:] = 0
    top, bottom = extremes[:LANES], extremes[LANES:]
    for at in range(0, bits.size, LANES):
        row = bits[at : at + LANES]
        for lane in range(LANES):
            top[lane] = max(np.int32(top[lane]), np.int32(row[lane]))
            bottom[lane] = max(bottom[lane], row[lane])
    largest = np.uint32(0)
    for lane in range(LANES):
        negative = np.uint32(max(bottom[lane], _NEGATIVE) & _MAGNITUDE)
        either = max(top[lane], negative)
        peak[lane] = as_float(either)
        sign[lane] = _ONE if negative >= top[lane] else -_ONE
        largest = max(largest, either)
    return largest


@jit
def baseline(peak: F32, divisor: np.float32, scale: F32) -> None:
    """Set the scales of minmax: peak / 7.5 rounded to bf16; fp32's epsilon where that is 0.

    compressed-tensors replaces a scale of 0; one that only bf16 rounds to 0, of a peak under 2^-131, becomes
    the same.
    """
    for lane in range(LANES):
        s = round_bf16(peak[lane] / divisor)
        scale[lane] = s if s > _ZERO else _EPS


@jit
def evaluate(w: F32, inverse: F32, codes: Codes, sums: F32) -> None:
    """Try a scale per lane, given as 1/s: sums of (u - q)^2, <w, q> and <q, q>, where u = w * (1/s)."""
    done, part = sums[: 3 * LANES], sums[3 * LANES :]
    done[:] = 0
    for run in range(0, w.size, RUN):
        part[:] = 0
        for at in range(run, min(run + RUN, w.size), EIGHT):
            v = w[at : at + EIGHT]
            for lane in range(LANES):
                wa, wb = four(v, lane), four(v, lane + 4 * LANES)
                ua, ub = multiply(wa, inverse[lane]), multiply(wb, inverse[lane])
                qa, qb = round_codes(ua, codes), round_codes(ub, codes)
                ea, eb = minus(ua, qa), minus(ub, qb)
                part[lane] += dot(ea, ea) + dot(eb, eb)
                part[lane + LANES] += dot(wa, qa) + dot(wb, qb)
                part[lane + 2 * LANES] += dot(qa, qa) + dot(qb, qb)
        for j in range(3 * LANES):
            done[j] += part[j]


@jit
def finish(codes: Codes, block: Block, first: int, packed: I32, scale: U16) -> None:
    """Write codes and scales of the block to the flat outputs; add to its totals."""
    per_group, lanes = packed.size // scale.size, min(LANES, scale.size - first)
    _codes(block.w, block.scale, codes, block.q, block.sums)
    _pack(block.q, codes.bits, block.packed)
    zero, saturated = _count(codes.bits, block.packed, lanes)
    block.counts[0] += zero
    block.counts[1] += saturated
    for lane in range(lanes):
        s = np.float64(block.scale[lane])
        block.total[0] += np.float64(block.sums[lane]) * (s * s)
        block.total[1] += np.float64(block.sums[LANES + lane]) * (s * s)
        scale[first + lane] = np.uint16(as_bits(block.scale[lane]) >> np.uint32(16))
    _blank(block.packed, block.loaded.size // LANES * codes.bits)
    out = packed[first * per_group : (first + lanes) * per_group]
    for lane in range(lanes):
        for j in range(per_group):
            out[lane * per_group + j] = np.int32(block.packed[LANES * j + lane])


@jit
def _codes(w: F32, scale: F32, codes: Codes, q: I8, sums: F32) -> None:
    """Divide and round; sums of (u - q)^2 and u^2, where u = w / s."""
    done, part = sums[: 2 * LANES], sums[3 * LANES : 5 * LANES]
    done[:] = 0
    for run in range(0, w.size, RUN):
        part[:] = 0
        for at in range(run, min(run + RUN, w.size), EIGHT):
            v, out = w[at : at + EIGHT], q[at : at + EIGHT]
            for lane in range(LANES):
                ua = divide(four(v, lane), scale[lane])
                ub = divide(four(v, lane + 4 * LANES), scale[lane])
                qa, qb = round_codes(ua, codes), round_codes(ub, codes)
                ea, eb = minus(ua, qa), minus(ub, qb)
                part[lane] += dot(ea, ea) + dot(eb, eb)
                part[lane + LANES] += dot(ua, ua) + dot(ub, ub)
                for j in range(4):
                    out[lane + j * LANES] = np.int8(qa[j])
                    out[lane + (j + 4) * LANES] = np.int8(qb[j])
        for j in range(2 * LANES):
            done[j] += part[j]


@jit
def _pack(q: I8, bits: int, packed: U32) -> None:
    """Pack codes + half the range into words, the first lowest."""
    per_word = 32 // bits
    half, mask = np.uint32(1 << (bits - 1)), np.uint32((1 << bits) - 1)
    for word in range(packed.size // LANES):
        out = packed[word * LANES : (word + 1) * LANES]
        out[:] = 0
        for j in range(per_word):
            v = q[(word * per_word + j) * LANES : (word * per_word + j + 1) * LANES]
            shift = np.uint32(bits * j)
            for lane in range(LANES):
                out[lane] |= ((np.uint32(v[lane]) + half) & mask) << shift


@jit
def _blank(packed: U32, bits: int) -> None:
    """Clear the bits after the `bits` of a group in its last word."""
    if bits % 32:
        last = packed[bits // 32 * LANES : (bits // 32 + 1) * LANES]
        for lane in range(LANES):
            last[lane] &= np.uint32((1 << (bits % 32)) - 1)


@jit
def _count(bits: int, packed: U32, lanes: int) -> tuple[int, int]:
    """Count the codes that are 0, and those that are the smallest or the largest, a word at a time."""
    zero = saturated = np.uint32(0)
    for at in range(0, packed.size, LANES):
        row = packed[at : at + lanes]
        if bits == _NIBBLE:
            for lane in range(lanes):
                zero += _empty_nibbles(row[lane] ^ np.uint32(0x88888888))
                saturated += _empty_nibbles(row[lane]) + _empty_nibbles(~row[lane])
        else:
            for lane in range(lanes):
                zero += _empty_bytes(row[lane] ^ np.uint32(0x80808080))
                saturated += _empty_bytes(row[lane]) + _empty_bytes(~row[lane])
    return int(zero), int(saturated)


@jit
def _empty_nibbles(word: np.uint32) -> np.uint32:
    """Count the nibbles of 8 that are 0: gather each in its lowest bit, then add those up in the top one."""
    t = np.uint32(word | (word >> np.uint32(2)))
    t = np.uint32(t | (t >> np.uint32(1))) & np.uint32(0x11111111)
    return np.uint32(8) - (np.uint32(t * np.uint32(0x11111111)) >> np.uint32(28))


@jit
def _empty_bytes(word: np.uint32) -> np.uint32:
    """Count the bytes of 4 that are 0."""
    t = np.uint32(word | (word >> np.uint32(4)))
    t = np.uint32(t | (t >> np.uint32(2)))
    t = np.uint32(t | (t >> np.uint32(1))) & np.uint32(0x01010101)
    return np.uint32(4) - (np.uint32(t * np.uint32(0x01010101)) >> np.uint32(24))
