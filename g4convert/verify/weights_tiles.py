"""Measures packed weights against their source, tile by tile: what is read once, everything is counted from.

For each group of g weights w with codes q (zero point taken off) and scale s, three sums say all that is needed:

    ww = sum w*w    wq = sum w*q    qq = sum q*q
    squared error        sum (w - s*q)^2 = ww - 2*s*wq + s*s*qq
    its removable part   (wq - s*qq)^2 / qq: what the best scale for the same codes would save; nearly nothing,
                         unless the scale belongs to other codes

Codes come from compressed-tensors' `unpack_from_int32`. A tile is some rows; sums of a group are float32, all others
float64. Nothing larger than a tile is ever held.

Letters: n out_features, k in_features, g group_size, b num_bits.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from g4convert.checkpoint import StoredTensor
from g4convert.errors import InputError
from g4convert.forward.pieces import TORCH_DTYPES
from g4convert.gemma4 import Weight
from g4convert.tensors import DType

__all__ = ["Files", "Measured", "PackedPair", "Place", "Tile", "measure", "measure_tile", "place", "read_tile"]

_TILE = 1 << 19
"""Weights of a tile: 2 MiB in float32; smaller ones spend their time between operations."""

_EXACT = 2.0**-15
"""Relative squared error of a group that is exact: a product and a scale rounded to bf16 lose at most 2^-16."""


class Files:
    """Files of a checkpoint, opened once, read at offsets from any thread."""

    def __init__(self, directory: Path, files: Iterable[str]) -> None:
        self._fds = {file: os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC) for file in files}

    def read(self, file: str, begin: int, nbytes: int) -> bytearray:
        """Bytes [begin, begin + nbytes) of a file.

        Raises:
            InputError: the file ends first: it was changed since its header was read.
        """
        buffer = bytearray(nbytes)
        filled = 0
        while filled < nbytes:
            count = os.preadv(self._fds[file], [memoryview(buffer)[filled:]], begin + filled)
            if not count:
                raise InputError(f"{file}: ends at byte {begin + filled}, was longer a moment ago", hint="start again")
            filled += count
        return buffer

    def close(self) -> None:
        """Close every file."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a 2-D tensor is: rows of `shape[1]` elements from byte `begin` of a file.

    Args:
        files: the checkpoint's.
        file: which one.
        begin: offset of the first row.
        shape: [rows, columns].
        dtype: as stored.
    """

    files: Files
    file: str
    begin: int
    shape: tuple[int, int]
    dtype: DType

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end), in the stored dtype."""
        width = self.shape[1] * self.dtype.itemsize
        dtype = torch.int32 if self.dtype is DType.I32 else TORCH_DTYPES[self.dtype]
        raw = self.files.read(self.file, self.begin + begin * width, (end - begin) * width)
        return torch.frombuffer(raw, dtype=dtype).view(end - begin, self.shape[1])


@dataclass(frozen=True, slots=True)
class PackedPair:
    """A packed weight and its source.

    Args:
        name: of the module, as written.
        weight: what the source says of it.
        num_bits: 4 or 8.
        source: where the source is, [n, k].
        words: where the packed words are, [n, k * b / 32].
        scale: where the scales are, [n, groups].
        zero_point: where packed zero points are, [n * b / 32, groups]; None without.
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
        """Weights that share a scale."""
        return self.source.shape[1] // self.scale.shape[1]


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows of a packed weight: words int32 [r, words], scale [r, groups] and zeros, float32, or None."""

    words: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor | None
    source: torch.Tensor
    num_bits: int

    @property
    def codes(self) -> torch.Tensor:
        """Codes with their zero points taken off, float32 [r * groups, g]."""
        r, groups = self.scale.shape
        unpacked: torch.Tensor = unpack_from_int32(self.words, self.num_bits, self.source.shape)
        codes = unpacked.float().view(r, groups, -1)
        return (codes if self.zeros is None else codes - self.zeros.unsqueeze(-1)).view(r * groups, -1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over a weight; two halves of a weight add up to the whole.

    Args:
        weights: how many.
        groups: how many.
        signal: sum of squared weights.
        error: sum of squared errors.
        removable: the part of it that other scales would save.
        exact_groups: groups that are exact but for rounding to bf16.
        lost_groups: groups whose error is larger than rounding can make it.
        zero_codes: codes that stand for 0.
        saturated_codes: codes at either end.
        bad_scales: scales that are not finite.
        zero_scales: scales of 0 whose weights are not 0.
        one_word: whether all words are the same, and which.
        one_value: whether all source weights are the same.
    """

    weights: int = 0
    groups: int = 0
    signal: float = 0.0
    error: float = 0.0
    removable: float = 0.0
    exact_groups: int = 0
    lost_groups: int = 0
    zero_codes: int = 0
    saturated_codes: int = 0
    bad_scales: int = 0
    zero_scales: int = 0
    one_word: float | None = None
    one_value: float | None = None

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


def measure(pair: PackedPair, begin: int, end: int) -> Measured:
    """Measure rows [begin, end) of a packed weight."""
    total = Measured()
    rows = max(1, _TILE // pair.source.shape[1])
    for first in range(begin, end, rows):
        total += measure_tile(read_tile(pair, first, min(first + rows, end)))
    return total


def read_tile(pair: PackedPair, begin: int, end: int) -> Tile:
    """Rows [begin, end) as they are stored."""
    return Tile(
        words=pair.words.rows(begin, end),
        scale=pair.scale.rows(begin, end).float(),
        zeros=_zeros(pair, begin, end),
        source=pair.source.rows(begin, end),
        num_bits=pair.num_bits,
    )


def _zeros(pair: PackedPair, begin: int, end: int) -> torch.Tensor | None:
    """Zero points of rows [begin, end), float32 [rows, groups]; they are packed along the rows."""
    if pair.zero_point is None:
        return None
    each = 32 // pair.num_bits
    first, last = begin // each, -(-end // each)
    words = pair.zero_point.rows(first, last)
    shape = torch.Size(((last - first) * each, words.shape[1]))
    zeros: torch.Tensor = unpack_from_int32(words, pair.num_bits, shape, packed_dim=0)
    return zeros[begin - first * each : end - first * each].float()


def measure_tile(tile: Tile) -> Measured:
    """Measure a tile."""
    q = tile.codes
    w = tile.source.float().view(q.shape)
    scale = tile.scale.reshape(-1)
    finite = scale.isfinite()
    s = scale.where(finite, 0.0)
    ww, wq, qq = (w * w).sum(-1), (w * q).sum(-1), (q * q).sum(-1)
    gradient = wq - s * qq
    error = (ww - s * (wq + gradient)).clamp_(min=0)  # ww - 2 s wq + s s qq
    removable = gradient.square().div_(qq.clamp_(min=0.25))  # qq of codes is 0, or at least 1
    zero, saturated = _code_counts(tile)
    return Measured(
        weights=w.numel(),
        groups=q.shape[0],
        signal=float(ww.sum(dtype=torch.float64)),
        error=float(error.sum(dtype=torch.float64)),
        removable=float(removable.sum(dtype=torch.float64)),
        exact_groups=int(torch.count_nonzero(error <= _EXACT * ww)),
        lost_groups=int(torch.count_nonzero(error > _largest_error(tile.num_bits, q.shape[1]) * ww)),
        zero_codes=zero,
        saturated_codes=saturated,
        bad_scales=s.numel() - int(torch.count_nonzero(finite)),
        zero_scales=int(torch.count_nonzero((scale == 0) & (ww > 0))),
        one_word=_only(tile.words),
        one_value=_only(tile.source),
    )


def _largest_error(num_bits: int, group: int) -> float:
    """Relative error that no rounded group exceeds.

    With a scale of max|w| / half, half being 7.5 of int4, no weight is off by more than half a scale, so the error is
    at most g / (2 * half)^2 of the largest weight alone; a searched scale does not do worse. Methods that round some
    weights up to make good for others may: they get a quarter more, and never less than 0.3 of int4.
    """
    steps = (1 << num_bits) - 1
    return max(1.25 * group / steps**2, 0.3 * (15 / steps) ** 2)


def _code_counts(tile: Tile) -> tuple[int, int]:
    """Codes that stand for 0, and codes at either end, from the bytes they are stored in."""
    counts = torch.bincount(tile.words.reshape(-1).view(torch.uint8), minlength=256)
    if tile.num_bits == 4:
        table = counts.view(16, 16)
        counts = table.sum(0) + table.sum(1)
    half = len(counts) // 2
    return int(counts[half]), int(counts[0] + counts[-1])


def _only(values: torch.Tensor) -> float | None:
    """The value that all have, or None."""
    first = values[0, 0]
    if bool(values[0, -1] != first) or not bool((values == first).all()):
        return None
    one: float = first.item()
    return one


def place(files: Files, stored: StoredTensor, rows: int, number: int = 0) -> Place:
    """Where a matrix is: a stored 2-D tensor, or one of the matrices stacked in a 3-D one.

    Args:
        files: the checkpoint's.
        stored: the tensor.
        rows: of the matrix.
        number: how many matrices lie before it.
    """
    info = stored.info
    begin = stored.begin + number * rows * info.shape[-1] * info.dtype.itemsize
    return Place(files, stored.file, begin, (rows, info.shape[-1]), info.dtype)
