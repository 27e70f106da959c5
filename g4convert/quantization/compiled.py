"""Parts shared by all kernels: their arguments, and arithmetic on a few numbers.

Kernels are functions in the subset of Python that numba compiles. LLVM inlines the small ones. A lane's elements
are handled 4 at a time (`Four`); the sums of two `Four` make the tree of 8 that `steps` describes.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, F64, I8, I64, U32
from g4convert.jit import jit

Four = tuple[np.float32, np.float32, np.float32, np.float32]

LANES = 64
EIGHT = 8 * LANES  # 8 elements of each lane: one step of the inner loops
RUN = 128 * LANES

_ZERO, _ONE = np.float32(0), np.float32(1)
_SMALLEST, _LARGEST = np.float32(2.0**-100), np.float32(2.0**100)


class Words(NamedTuple):
    """The words of a tile, uint16 or uint32 [groups * g], and the fields of its dtype's `SourceFormat`."""

    flat: NDArray[Any]
    g: int
    kind: int
    limit: np.uint32
    down: np.float32
    half: np.uint32
    shift: np.uint32
    odd: np.uint32


class Codes(NamedTuple):
    """The code range: bits, smallest and largest code, half the range; and whether a scale may be negative."""

    bits: int
    low: np.float32
    high: np.float32
    divisor: np.float32
    signed: bool


class Block(NamedTuple):
    """Scratch for 64 groups, one per worker thread; r is g rounded up to a multiple of 8.

    Args:
        turned, loaded: words [64 * g]: the transposition, half-way and done.
        w, bits: one memory [r * 64] as float32 and uint32: the weights.
        q: int8 [r * 64]: their codes.
        packed: uint32 [r * bits / 32 * 64]: the codes as words.
        extremes: uint32 [2 * 64]: bits of the largest and the smallest weight.
        peak: float32 [64]: largest magnitude.
        sign: float32 [64]: -1 where the peak is a positive weight, so that its code is the smallest, else 1.
        scale: float32 [64]: the scale chosen; a bf16 number, not 0.
        sums: float32 [6 * 64]: results of a trial: error, <w, q>, <q, q>; and the same of one run.
        spare: float32 [5 * 64]: for the method.
        levels: float32 [c]: what `mse` tries.
        grid: float32 [4 * c * 64]: its sums for each level, and those of one run.
        steps: float32 [4 * 64]: `lattice`'s step of each lane, weights it misses; and another's.
        total: float64 [2]: squared error and squared weight of the tile.
        counts: int64 [4]: zero codes, saturated codes, lattice groups, exact groups of the tile.
    """

    turned: NDArray[Any]
    loaded: NDArray[Any]
    w: F32
    bits: U32
    q: I8
    packed: U32
    extremes: U32
    peak: F32
    sign: F32
    scale: F32
    sums: F32
    spare: F32
    levels: F32
    grid: F32
    steps: F32
    total: F64
    counts: I64


@jit
def as_bits(value: np.float32) -> np.uint32:
    """Return the bits of an fp32."""
    return np.float32(value).view(np.uint32)


@jit
def as_float(bits: np.uint32) -> np.float32:
    """Return the fp32 with these bits."""
    return np.uint32(bits).view(np.float32)


@jit
def round_bf16(value: np.float32) -> np.float32:
    """Round a finite fp32 to bf16, ties to even; returns it as fp32."""
    bits = as_bits(value)
    return as_float((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000))


@jit
def unit(peak: np.float32) -> np.float32:
    """Return 1 / peak; 0 if all weights are 0, or so small or large that a search could overflow."""
    return _ONE / peak if _SMALLEST <= peak <= _LARGEST else _ZERO


@jit
def nearest(u: np.float32, codes: Codes) -> np.float32:
    """Round to the nearest code, ties to even."""
    q = np.rint(u)
    q = max(codes.low, q)
    return min(codes.high, q)


@jit
def four(v: F32, at: int) -> Four:
    """Return 4 consecutive elements of a lane."""
    return v[at], v[at + LANES], v[at + 2 * LANES], v[at + 3 * LANES]


@jit
def dot(a: Four, b: Four) -> np.float32:
    """Sum 4 products in that order."""
    return (a[0] * b[0] + a[1] * b[1]) + (a[2] * b[2] + a[3] * b[3])


@jit
def multiply(a: Four, s: np.float32) -> Four:
    """Multiply 4 numbers."""
    return a[0] * s, a[1] * s, a[2] * s, a[3] * s


@jit
def round_codes(u: Four, codes: Codes) -> Four:
    """Round 4 numbers to codes."""
    return nearest(u[0], codes), nearest(u[1], codes), nearest(u[2], codes), nearest(u[3], codes)


@jit
def times(a: Four, b: Four) -> Four:
    """Multiply 4 numbers by 4 others."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]


@jit
def absolute(a: Four) -> Four:
    """Return the magnitudes of 4 numbers."""
    return abs(a[0]), abs(a[1]), abs(a[2]), abs(a[3])


@jit
def minus(a: Four, b: Four) -> Four:
    """Subtract 4 numbers."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]


@jit
def divide(a: Four, s: np.float32) -> Four:
    """Divide 4 numbers."""
    return a[0] / s, a[1] / s, a[2] / s, a[3] / s
