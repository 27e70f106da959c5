"""`CpuTiles`: numba kernels on numpy arrays, one object per worker thread."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I32, U16
from g4convert.quantization.arrays import check_outputs, check_rows, check_squares
from g4convert.quantization.compiled import LANES, Block, Codes, Words
from g4convert.quantization.imatrix import quantize_imatrix, weigh_inputs
from g4convert.quantization.lattice import count_lattice, quantize_lattice
from g4convert.quantization.scheme import Method, NonFiniteError, Scheme, TileStats
from g4convert.quantization.search import quantize_mse
from g4convert.quantization.source import FORMATS
from g4convert.quantization.steps import quantize_minmax
from g4convert.tensors import DType

_KERNELS = {
    Method.MINMAX: quantize_minmax,
    Method.MSE: quantize_mse,
    Method.LATTICE: quantize_lattice,
}


class CpuTiles:
    """Quantizes tiles of rows on the calling thread; see `Tiles` for the calls.

    It owns the scratch of its kernels, so a thread needs its own; kernels run without the interpreter lock.
    Work goes 64 groups at a time: a tile whose groups are a multiple of 64 wastes none. The scratch is
    some 900 bytes per element of a group at most: 60 KB for g = 64, 20 MB for a row of 21504 per channel.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Scheme, int, np.dtype[Any]], Block] | None = None

    def quantize(  # noqa: PLR0913, PLR0917 -- a tile, what to make of it and where to put it
        self,
        rows: NDArray[Any],
        dtype: DType,
        scheme: Scheme,
        packed: I32,
        scale: U16,
        squares: F32 | None = None,
    ) -> TileStats:
        """Quantize `rows` [n, k] into `packed` and `scale`."""
        n, k = rows.shape
        words = _words(rows, dtype, scheme)
        check_outputs(scheme, (n, k), packed, scale)
        if n == 0:
            return TileStats()
        block = self._block(scheme, k, words)
        block.total[:] = 0
        block.counts[:] = 0
        codes, out = _codes(scheme), (packed.reshape(-1), scale.reshape(-1))
        if scheme.method is Method.IMATRIX:
            inputs = weigh_inputs(check_squares(squares, k), words.g, block.levels.size)
            bad = quantize_imatrix(words, codes, block, inputs, *out)
        else:
            bad = _KERNELS[scheme.method](words, codes, block, *out)
        if bad >= 0:
            raise NonFiniteError(*divmod(int(bad), k))
        zero, saturated, lattice, exact = (int(count) for count in block.counts)
        return TileStats(
            weights=n * k,
            groups=scale.size,
            squared_error=float(block.total[0]),
            squared_weight=float(block.total[1]),
            zero_codes=zero - (block.q.size // LANES - words.g) * scale.size,
            saturated_codes=saturated,
            lattice_groups=lattice,
            exact_groups=exact,
        )

    def lattice_share(self, rows: NDArray[Any], dtype: DType, group_size: int | None) -> float:
        """Return the share of the groups of `rows` [n, k] that lie on a 4-bit grid."""
        scheme = Scheme(4, group_size, Method.LATTICE)
        words = _words(rows, dtype, scheme)
        if words.flat.size == 0:
            return 0.0
        block = self._block(scheme, rows.shape[1], words)
        block.counts[:] = 0
        groups = words.flat.size // words.g
        bad = count_lattice(words, _codes(scheme), block, groups)
        if bad >= 0:
            raise NonFiniteError(*divmod(int(bad), rows.shape[1]))
        return int(block.counts[2]) / groups

    def _block(self, scheme: Scheme, k: int, words: Words) -> Block:
        key = (scheme, words.g, words.flat.dtype)
        if self._kept is None or self._kept[0] != key:  # tiles of one shape come together: keep the last
            self._kept = key, _scratch(scheme, k, words)
        return self._kept[1]


def _words(rows: NDArray[Any], dtype: DType, scheme: Scheme) -> Words:
    check_rows(rows, dtype)
    source = FORMATS[dtype]
    scheme.groups(rows.shape[1])
    aligned = rows if rows.flags.aligned else rows.copy()
    flat = aligned.reshape(-1).view(np.dtype(f"u{source.itemsize}"))
    flat.flags.writeable = False  # as memory maps are: one compiled variant serves both
    return Words(
        flat=flat,
        g=scheme.group(rows.shape[1]),
        kind=source.kind,
        limit=np.uint32(source.limit),
        down=np.float32(source.down),
        half=np.uint32(source.half),
        shift=np.uint32(source.shift),
        odd=np.uint32(source.odd),
    )


def _codes(scheme: Scheme) -> Codes:
    return Codes(
        bits=scheme.num_bits,
        low=np.float32(-scheme.code_max - 1),
        high=np.float32(scheme.code_max),
        divisor=np.float32(scheme.divisor),
        signed=scheme.signed,
    )


def _scratch(scheme: Scheme, k: int, words: Words) -> Block:
    padded = -(-words.g // 8) * 8 * LANES
    levels = np.array(scheme.levels(k), np.float32)
    bits = np.zeros(padded, np.uint32)
    return Block(
        turned=np.zeros(words.g * LANES, words.flat.dtype),
        loaded=np.zeros(words.g * LANES, words.flat.dtype),
        w=bits.view(np.float32),
        bits=bits,
        q=np.zeros(padded, np.int8),
        packed=np.zeros(padded * scheme.num_bits // 32, np.uint32),
        extremes=np.zeros(2 * LANES, np.uint32),
        peak=np.zeros(LANES, np.float32),
        sign=np.zeros(LANES, np.float32),
        scale=np.zeros(LANES, np.float32),
        sums=np.zeros(6 * LANES, np.float32),
        spare=np.zeros(5 * LANES, np.float32),
        levels=levels,
        grid=np.zeros(4 * levels.size * LANES, np.float32),
        steps=np.zeros(4 * LANES, np.float32),
        total=np.zeros(2, np.float64),
        counts=np.zeros(4, np.int64),
    )
