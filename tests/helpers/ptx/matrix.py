"""Layout of matrices in the registers of a warp, and in shared memory.

That is in the PTX ISA, "Matrix fragments for mma.m16n8k16" and "Register fragments for wgmma.mma_async.m64nNk16". Lane
l has r = l / 4 and t = l % 4; its registers, of two 16-bit values or one of 32 bits:

    A [16, 16]   columns 2t, 2t+1   8+2t, 9+2t     B [16, 8]      column r     C, D [16, 8]   columns 2t, 2t+1
    row r             a0                a2         rows 2t, 2t+1      b0       row r               c0, c1
    row r + 8         a1                a3         rows 8+2t, 9+2t    b1       row r + 8           c2, c3

wgmma [64, n, 16] has four such warps below each other, and n/8 such blocks of D beside each other. Its B is in shared
memory, each column of 16 values in 32 bytes:

    column c, bytes 16j..16j+15:    start + (c / 8) stride + (c % 8) pitch + 16j, with bits 4..6 xor bits 7..9

for swizzles of 128 bytes, a pitch of 128; fewer bits for 64 and 32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.arithmetic import floats
from helpers.ptx.memory import Fault

if TYPE_CHECKING:
    from helpers.ptx.arithmetic import Array

__all__ = ["accumulate", "from_result", "left", "operand", "right", "scattered", "to_result", "transposed"]

_LANE, _HALF = np.arange(32)[:, None], np.arange(8)
_ROW, _PLACE = _LANE // 4, _LANE % 4
_A = (_ROW + 8 * (_HALF // 2 % 2), 2 * _PLACE + _HALF % 2 + 8 * (_HALF // 4))
_B = (2 * _PLACE + _HALF[:4] % 2 + 8 * (_HALF[:4] // 2), np.broadcast_to(_ROW, (32, 4)))
_PITCH = {1: 128, 2: 64, 3: 32}
"""Bytes of a swizzled row, by the descriptor's mode."""


def left(words: Array, kind: str) -> Array:
    """A of each warp, float32 [w, 16, 16], from registers uint32 [32 w, 4] of `bf16` or `f16`."""
    values = floats(np.ascontiguousarray(words).view(np.uint16), kind).reshape(-1, 32, 8)
    out = np.empty((len(values), 16, 16), np.float32)
    out[:, _A[0], _A[1]] = values
    return out


def right(words: Array, kind: str) -> Array:
    """B of each warp, float32 [w, 16, 8], from registers uint32 [32 w, 2]."""
    values = floats(np.ascontiguousarray(words).view(np.uint16), kind).reshape(-1, 32, 4)
    out = np.empty((len(values), 16, 8), np.float32)
    out[:, _B[0], _B[1]] = values
    return out


def _result(count: int) -> tuple[Array, Array]:
    """Rows and columns of the registers of each lane of D [16, 2 count]."""
    i = np.arange(count)
    return _ROW + 8 * (i // 2 % 2), 2 * _PLACE + i % 2 + 8 * (i // 4)


def to_result(matrix: Array) -> Array:
    """Registers float32 [32 w, n/2] of D [w, 16, n]."""
    rows, columns = _result(matrix.shape[2] // 2)
    return matrix[:, rows, columns].reshape(-1, rows.shape[1])


def from_result(values: Array) -> Array:
    """C [w, 16, n] of registers float32 [32 w, n/2]."""
    count = values.shape[1]
    rows, columns = _result(count)
    out = np.empty((len(values) // 32, 16, 2 * count), np.float32)
    out[:, rows, columns] = values.reshape(-1, 32, count)
    return out


def accumulate(a: Array, b: Array, c: Array) -> Array:
    """A B + C: summed in float64, rounded once."""
    return (a.astype(np.float64) @ b.astype(np.float64) + c).astype(np.float32)


def transposed(rows: Array, *, trans: bool) -> Array:
    """Return the values that each lane gets of 8x8 matrices of 16-bit values.

    Args:
        rows: uint8 [w, x, 8, 16].
        trans: whether columns are handed out instead.

    Returns:
        uint32 [w, x, 32]: lane l has values 2 (l % 4) and the next one of row l / 4.
    """
    matrices = np.ascontiguousarray(rows).view(np.uint16)
    if trans:
        matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
    return matrices.view(np.uint32).reshape(*rows.shape[:2], 32)


def scattered(lanes: Array, *, trans: bool) -> Array:
    """The inverse of `transposed`: rows uint8 [w, x, 8, 16] of what lanes have, uint32 [w, x, 32]."""
    matrices = np.ascontiguousarray(lanes).view(np.uint16).reshape(*lanes.shape[:2], 8, 8)
    if trans:
        matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
    return matrices.view(np.uint8)


def operand(descriptor: int, n: int) -> Array:
    """Return the addresses of B of a wgmma, 16 bytes each, [n, 2], for a descriptor of its shared memory.

    Bits 0..13 are the start, 16..29 the leading and 32..45 the stride offset, all in 16 bytes; 49..51 the base offset;
    62..63 the swizzle. The leading offset says nothing of 16 columns of a swizzled matrix.
    """
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    mode = descriptor >> 62
    if mode not in _PITCH or descriptor >> 49 & 7:
        raise Fault(f"descriptor {descriptor:#x}: no swizzle, or a base offset, which are not known here")
    pitch = _PITCH[mode]
    if stride % (8 * pitch):
        raise Fault(f"descriptor {descriptor:#x}: a stride of {stride} is not whole blocks of {8 * pitch} bytes")
    column = np.arange(n)[:, None]
    linear = start + column // 8 * stride + column % 8 * pitch + np.arange(0, 32, 16)
    return linear ^ (linear >> 3 & pitch - 16)
