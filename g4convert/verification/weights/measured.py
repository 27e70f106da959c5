"""Measurement of packed weights against their source, tile by tile; every byte is read once.

A tile is a few rows, read as numpy arrays of the stored bytes; `group_sums` adds up its sums. No more than a tile is
held in memory.

Letters: n out_features, k in_features, g group_size, b num_bits, r rows of a tile.
"""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I32, U16, U32
from g4convert.checkpoint.directory import StoredTensor
from g4convert.checkpoint.reader import Reader
from g4convert.gemma4 import Weight
from g4convert.tensors import DType
from g4convert.verification.weights.group_sums import Limits, Sums, measure_groups
from g4convert.verification.weights.lanes import codes_of, groups_of

_TILE: Final = 1 << 20
"""Number of weights in a tile: 2 MiB of bf16."""

_EXACT: Final = 2.0**-15
"""Largest relative squared error of an exact group: rounding a product and a scale to bf16 costs at most 2^-16."""

_STORED: Final = {DType.BF16: np.uint16, DType.F16: np.float16, DType.F32: np.float32, DType.I32: np.int32}

Bits = U16 | U32


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a 2-D tensor: rows of `shape[1]` elements from byte `begin` of a file.

    Args:
        files: reader of the checkpoint's files.
        file: name of the file.
        begin: offset of the first row, bytes.
        shape: [rows, columns].
        dtype: stored dtype.
    """

    files: Reader
    file: str
    begin: int
    shape: tuple[int, int]
    dtype: DType

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.shape[1] * self.dtype.itemsize

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Read rows [begin, end) as [r, columns]: int32, float32, float16, or uint16 with the bits of bf16."""
        read = np.empty((end - begin, self.shape[1]), _STORED[self.dtype])
        self.files.read_into(self.file, self.begin + begin * self.width, read.data.cast("B"))
        return read


@dataclass(frozen=True, slots=True)
class PackedPair:
    """A packed weight and its source.

    Args:
        name: name of the module in the output.
        weight: the weight in the source.
        num_bits: bits of a code, 2 to 8.
        source: place of the source, [n, k].
        words: place of the packed words, [n, k * b / 32].
        scale: place of the scales, [n, groups].
        zero_point: place of the packed zero points, [n * b / 32, groups]; None for symmetric weights.
    """

    name: str
    weight: Weight
    num_bits: int
    source: Place
    words: Place
    scale: Place
    zero_point: Place | None

    @property
    def group(self) -> int:
        """Number of weights that share a scale."""
        return self.source.shape[1] // self.scale.shape[1]


@dataclass(frozen=True, slots=True)
class RowTile:
    """Some rows of a packed weight and of its source.

    Args:
        words: int32 [r, words], as stored.
        scale: float32 [r, groups].
        zeros: float32 [r, groups], zero points; [0, 0] for symmetric weights.
        source: bits of the source's weights, [r, k]: uint16 for bf16, uint32 for fp32.
        num_bits: bits of a code, 2 to 8.
    """

    words: I32
    scale: F32
    zeros: F32
    source: Bits
    num_bits: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over rows of a weight; the sums of its parts add up to the sums of the whole.

    Behind the two first, the fields are in the order of `Sums.totals` and `Sums.counts`.

    Args:
        weights: number of weights.
        groups: number of groups.
        signal: sum of squared weights.
        error: sum of squared errors.
        removable: part of `error` that the best scales for the same codes would save.
        along: sum of errors times decoded weights.
        plain_error: sum of squared errors of plain rounding of the same groups.
        plain_removable: part of `plain_error` that the best scales for the same codes would save.
        plain_along: sum of errors times decoded weights of plain rounding.
        exact_groups: number of groups that are exact up to rounding to bf16.
        lost_groups: number of groups whose error is too large for any rounding.
        zero_codes: number of codes that stand for 0.
        saturated_codes: number of codes at either end of the range.
        bad_scales: number of scales that are not finite.
        zero_scales: number of zero scales of groups with nonzero weights.
        plain_zero: number of codes of plain rounding that stand for 0.
        plain_saturated: number of codes of plain rounding at either end of the range.
        resized_groups: number of groups whose codes are those of a far larger or smaller scale.
        one_word: the packed word, if all words are equal; else None.
        one_value: the bits of the source's value, if all its weights are equal; else None.
    """

    weights: int = 0
    groups: int = 0
    signal: float = 0.0
    error: float = 0.0
    removable: float = 0.0
    along: float = 0.0
    plain_error: float = 0.0
    plain_removable: float = 0.0
    plain_along: float = 0.0
    exact_groups: int = 0
    lost_groups: int = 0
    zero_codes: int = 0
    saturated_codes: int = 0
    bad_scales: int = 0
    zero_scales: int = 0
    plain_zero: int = 0
    plain_saturated: int = 0
    resized_groups: int = 0
    one_word: int | None = None
    one_value: int | None = None

    def __add__(self, other: "Measured") -> "Measured":
        if not self.weights:
            return other
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)[:-2]}
        one_word = self.one_word if self.one_word == other.one_word else None
        one_value = self.one_value if self.one_value == other.one_value else None
        return Measured(**sums, one_word=one_word, one_value=one_value)

    @property
    def relative_error(self) -> float:
        """Squared error over squared weights; 0 where both are 0."""
        if not self.signal:
            return float("inf") if self.error else 0.0
        return self.error / self.signal

    @property
    def plain_relative_error(self) -> float:
        """Relative error of plain rounding: every group rounded to the nearest code."""
        return self.plain_error / self.signal if self.signal else 0.0

    @property
    def growth(self) -> float:
        """Share by which the decoded weights must grow to fit the source best, all by one factor."""
        return _growth(self.signal, self.error, self.along)

    @property
    def plain_growth(self) -> float:
        """Growth of the weights of plain rounding."""
        return _growth(self.signal, self.plain_error, self.plain_along)


def _growth(signal: float, error: float, along: float) -> float:
    """Return the sum of errors times decoded weights over that of squared decoded weights, with w = s*q + e."""
    decoded = signal - error - 2 * along
    return along / decoded if decoded > 0 else 0.0


def measure(pair: PackedPair, begin: int, end: int) -> Measured:
    """Measure rows [begin, end) of a packed weight."""
    total = Measured()
    rows = max(1, _TILE // pair.source.shape[1])
    for first in range(begin, end, rows):
        total += measure_tile(read_tile(pair, first, min(first + rows, end)))
    return total


def read_tile(pair: PackedPair, begin: int, end: int) -> RowTile:
    """Read rows [begin, end) of a packed weight and of its source."""
    return RowTile(
        words=pair.words.rows(begin, end),
        scale=_as_float(pair.scale.rows(begin, end)),
        zeros=_read_zero_points(pair, begin, end),
        source=_as_bits(pair.source.rows(begin, end)),
        num_bits=pair.num_bits,
    )


def _as_float(stored: NDArray[Any]) -> F32:
    """Convert stored scales to float32, which is exact for bf16 and fp16."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)


def _as_bits(stored: NDArray[Any]) -> Bits:
    """Return the bits of the source's weights: uint16 for bf16, uint32 of the values as fp32 for other dtypes."""
    if stored.dtype == np.uint16:
        return stored
    bits: U32 = stored.astype(np.float32, copy=False).view(np.uint32)
    return bits


def _read_zero_points(pair: PackedPair, begin: int, end: int) -> F32:
    """Read the zero points of rows [begin, end); they are packed along the rows."""
    if pair.zero_point is None:
        return np.empty((0, 0), np.float32)
    b = pair.num_bits
    first = begin // 32 * 32  # a row whose codes begin a word
    words = pair.zero_point.rows(first * b // 32, -(-end * b // 32)).view(np.uint32)
    codes = codes_of(np.ascontiguousarray(words.T), end - first, b).T[begin - first :]
    return codes.astype(np.float32) - np.float32(1 << (b - 1))


def measure_tile(tile: RowTile) -> Measured:
    """Return the sums over a tile."""
    groups, padding = groups_of(tile.source, tile.words, tile.scale, tile.zeros, tile.num_bits)
    g = tile.source.size // tile.scale.size
    limits = Limits(np.float32(_EXACT), np.float32(_largest_error(tile.num_bits, g)))
    sums = Sums(np.zeros(7), np.zeros(9, np.int64))
    measure_groups(groups, tile.num_bits, limits, sums)
    if padding:
        _uncount(sums, groups.zeros, tile.num_bits, padding)
    fields: list[Any] = [tile.source.size, tile.scale.size, *sums.totals.tolist(), *sums.counts.tolist()]
    return Measured(*fields, *map(_common_value, (tile.words, tile.source)))


def _uncount(sums: Sums, zeros: F32, num_bits: int, padding: int) -> None:
    """Take the padding of each group out of the counts: its codes are the zero point, and 0 in plain rounding."""
    half = 1 << (num_bits - 1)
    ends = (zeros == -half) | (zeros == half - 1)
    sums.counts[[2, 3, 6]] -= padding * np.array([np.sum(zeros == 0), np.sum(ends), zeros.size])


def _largest_error(num_bits: int, group: int) -> float:
    """Return the relative squared error that no rounded group exceeds.

    With scale max|w| / half, where half is 7.5 for int4, no weight is off by more than half a scale. So the squared
    error is at most g / (2 * half)^2 times the largest squared weight; a searched scale does no worse. Methods that
    round some weights away to compensate others may exceed it: the limit adds a quarter, and is at least 0.3 for int4.
    """
    steps = (1 << num_bits) - 1
    return max(1.25 * group / steps**2, 0.3 * (15 / steps) ** 2)


def _common_value(values: NDArray[Any]) -> int | None:
    """Return the value that all elements have, or None if they differ."""
    first = values[0, 0]
    return None if values[0, -1] != first or not (values == first).all() else int(first)


def place(files: Reader, stored: StoredTensor, rows: int, number: int = 0) -> Place:
    """Return the place of a matrix: a stored 2-D tensor, or one of the matrices stacked in a 3-D one.

    Args:
        files: reader of the checkpoint's files.
        stored: the stored tensor.
        rows: number of rows of the matrix.
        number: number of matrices stacked before this matrix.
    """
    info = stored.info
    begin = stored.begin + number * rows * info.shape[-1] * info.dtype.itemsize
    return Place(files, stored.file, begin, (rows, info.shape[-1]), info.dtype)
