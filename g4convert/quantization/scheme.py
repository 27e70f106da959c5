"""Values that describe quantization: the request (`Scheme`) and its statistics; no numpy.

Letters, here and in the modules beside: `n` rows (out_features), `k` columns (in_features), `g` elements
of a group, `w` a weight, `s` a scale, `q` a code. Symmetric codes of `b` bits lie in [-2^(b-1), 2^(b-1)-1];
a weight reads back as `s * q`, and `s` may be negative: that gives the one extra code, -8, to the side
of a group that needs it.

The level of a search is peak / |s|: the code that the group's largest magnitude would get unclipped.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from g4convert.errors import InputError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from g4convert.array_types import F32, I32, U16
    from g4convert.tensors import DType

# `mse` keeps a scale whose error is less than that of minmax by more than fp32 can have lost in either sum
SLACK = 2.0**-20  # per element: bounds what rounding u = w/s adds to (u - q)^2 where that is near 0
MARGIN = 1.0 - 2.0**-10  # times the error: bounds what it adds elsewhere

# `lattice`
LARGEST_LEVEL = 8
OFF_GRID = 3 / 64  # a code off by this is on no grid; two roundings to bf16 move code 8 by 2/64
WIDER = 1 + 2.0**-21  # times a step: what the quotients that bound it can have lost

_NUM_BITS = (4, 8)
_GROUP_STEP = 8  # a group fills whole int32 words at 4 bits
_SHORT, _LONG = 32, 128
_SHORT_LEVELS = (6.5, 7.5, 8.5, 10, 12)
_LONG_LEVELS = (7.5, 9, 11, 14, 18)
"""Levels of `imatrix` at 4 bits, of either sign."""


class Method(StrEnum):
    """Ways to find a group's scale.

    `minmax`: the largest magnitude over half the code range, bit for bit as compressed-tensors.
    `mse`: the scale with the least sum of |w| (w - s q)^2 that a search finds; never worse than minmax in plain
    squared error.
    `lattice`: the step of the grid the group lies on, as quantization-aware training leaves it; groups
    on no grid take the scale of `mse`.
    `imatrix`: the scale with the least squared error weighted by E[x^2] of the inputs; never worse than minmax.
    `gptq`: layer by layer, on what the quantized layers before it give; see `calibration`. It is no method of tiles.
    `best`: the codes of `gptq`, on scales trained until the model answers like the original. It is no method of tiles.
    """

    MINMAX = "minmax"
    MSE = "mse"
    LATTICE = "lattice"
    IMATRIX = "imatrix"
    GPTQ = "gptq"
    BEST = "best"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantize a weight: symmetric integer codes, one bf16 scale per group of a row.

    Args:
        num_bits: 4 or 8.
        group_size: elements of a row that share a scale, a multiple of 8; None is a whole row (per channel).
        method: name of the method that finds the scale.
        signed: whether `mse` may choose a negative scale; no other method reads it.

    Raises:
        UsageError: a number of bits or a group size that cannot be packed, or `lattice` at 8 bits.
    """

    num_bits: int = 4
    group_size: int | None = 32
    method: Method = Method.MSE
    signed: bool = True

    def __post_init__(self) -> None:
        if self.num_bits not in _NUM_BITS:
            raise UsageError(f"num_bits is {self.num_bits}; 4 or 8 can be written")
        if self.group_size is not None and (self.group_size < 1 or self.group_size % _GROUP_STEP):
            raise UsageError(
                f"group_size is {self.group_size}; it must be a positive multiple of {_GROUP_STEP}",
                hint="32, 64 and 128 are the sizes that serving engines have kernels for",
            )
        if self.method is Method.LATTICE and self.num_bits != _NUM_BITS[0]:
            raise UsageError(
                f"method lattice finds 4-bit grids, num_bits is {self.num_bits}",
                hint="use num_bits 4, or method mse",
            )

    @property
    def code_max(self) -> int:
        """The largest code; the smallest is `-code_max - 1`."""
        return (1 << (self.num_bits - 1)) - 1

    @property
    def divisor(self) -> float:
        """Half the code range: compressed-tensors' scale is the largest magnitude over this."""
        return self.code_max + 0.5

    def group(self, k: int) -> int:
        """Elements of a group in a row of `k`."""
        return self.group_size or k

    def groups(self, k: int) -> int:
        """Scales of a row of `k` elements.

        Raises:
            ValueError: the group size does not divide `k`; planning refuses such layers.
        """
        if k < 1 or k % self.group(k):
            raise ValueError(f"{self.group_size} does not divide a row of {k}")
        return k // self.group(k)

    def words(self, k: int) -> int:
        """Packed int32 words of a row of `k` elements."""
        return -(-k * self.num_bits // 32)

    def levels(self, k: int) -> tuple[float, ...]:
        """Levels that a search tries in a group of a row of `k`, before the least squares refit of each.

        Chosen on Gaussian, Laplace, Student-t3 and uniform weights, against a search of 60 to 120 levels: the
        best level grows with the group, and a positive scale needs a wider range. The refit makes up for
        the coarse spacing. `docs/decisions.md` has the table.
        """
        g = self.group(k)
        if self.method is Method.IMATRIX:
            scale = 1 if self.num_bits == _NUM_BITS[0] else 17
            return tuple(scale * level for level in (_SHORT_LEVELS if g <= _SHORT else _LONG_LEVELS))
        if self.num_bits == _NUM_BITS[1]:
            return _linear(122, 130, 12) if g <= _LONG else _linear(122, 134, 12)
        if g > _LONG:
            return _geometric(7.5, 20, 10)
        if not self.signed:
            return _linear(6.5, 9.5, 8)
        return _linear(7, 8.75, 6) if g <= _SHORT else _linear(7.25, 9.25, 6)


@dataclass(frozen=True, slots=True)
class TileStats:
    """Statistics of quantizing some weights; `+` adds those of two tiles.

    The error is of `scale * code`, with the scale as stored, against the source. Sums are float64; joined
    in the same order they are the same bits on any machine and device.

    Args:
        weights: number of elements.
        groups: number of scales.
        squared_error: sum of squared differences to the source.
        squared_weight: sum of squares of the source.
        zero_codes: elements whose code is 0.
        saturated_codes: elements whose code is the smallest or the largest.
        lattice_groups: groups found on a grid; counted by method `lattice` alone.
        exact_groups: groups of those whose `scale * code`, rounded to the source dtype, is the source.
    """

    weights: int = 0
    groups: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0
    zero_codes: int = 0
    saturated_codes: int = 0
    lattice_groups: int = 0
    exact_groups: int = 0

    def __add__(self, other: "TileStats") -> "TileStats":
        return TileStats(
            weights=self.weights + other.weights,
            groups=self.groups + other.groups,
            squared_error=self.squared_error + other.squared_error,
            squared_weight=self.squared_weight + other.squared_weight,
            zero_codes=self.zero_codes + other.zero_codes,
            saturated_codes=self.saturated_codes + other.saturated_codes,
            lattice_groups=self.lattice_groups + other.lattice_groups,
            exact_groups=self.exact_groups + other.exact_groups,
        )

    @property
    def relative_error(self) -> float:
        """Squared error over squared weight; 0 where all weights are 0."""
        return self.squared_error / self.squared_weight if self.squared_weight else 0.0


class NonFiniteError(InputError):
    """Raised when a weight is NaN or infinite; the caller knows the tensor's name and adds it.

    Args:
        row: row of the first such weight, in row order, within the rows that were given.
        column: its column.
    """

    def __init__(self, row: int, column: int) -> None:
        super().__init__(f"weight [{row}, {column}] is NaN or infinite")
        self.row = row
        self.column = column


class Tiles(Protocol):
    """Quantizes tiles of rows on one device: `CpuTiles`, `TorchTiles`."""

    def quantize(  # noqa: PLR0913, PLR0917 -- a tile, what to make of it and where to put it
        self,
        rows: "NDArray[Any]",
        dtype: "DType",
        scheme: Scheme,
        packed: "I32",
        scale: "U16",
        squares: "F32 | None" = None,
    ) -> TileStats:
        """Quantize `rows` into `packed` and `scale`.

        Args:
            rows: weights [n, k], contiguous: uint16 words of BF16 or F16, or float32 of F32.
            dtype: dtype of the packed words.
            scheme: bits, group size and method.
            packed: output [n, scheme.words(k)], contiguous; element i of a row in bits i * num_bits and up,
                as code + 2^(num_bits-1), exactly compressed-tensors' `pack_to_int32`.
            scale: output [n, scheme.groups(k)], contiguous: bits of bf16, rounded to nearest even.
            squares: E[x^2] of each column [k], for method `imatrix`; no other reads it.

        Returns:
            What it did.

        Raises:
            NonFiniteError: a weight is NaN or infinite; the outputs are then not to be used.
            ValueError: an array whose dtype, shape or layout is not the above.
        """
        ...

    def lattice_share(self, rows: "NDArray[Any]", dtype: "DType", group_size: int | None) -> float:
        """Share of the groups of `rows` that lie on a 4-bit grid, 0 to 1; arguments as for `quantize`.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
            ValueError: an array whose dtype, shape or layout does not fit.
        """
        ...


def _linear(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(_in_64ths(first + (last - first) * i / (count - 1)) for i in range(count))


def _geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(_in_64ths(first * (last / first) ** (i / (count - 1))) for i in range(count))


def _in_64ths(value: float) -> float:
    """Round to a number that fp32 holds, so that no machine's `pow` shows in the result."""
    return round(value * 64) / 64
