"""Rounds one weight in several ways, and takes the way with the least output error.

    data_free  scales of the least squared error of the weight, as without calibration
    imatrix    scales of the least squared error weighted by E[x^2], codes to the nearest
    gptq       the scales of imatrix, codes by GPTQ

Where the original's inputs are known, the last two round a weight that is moved half of the way to the one that gives
the original's outputs on the quantized layers' inputs.

The error is |X Q^T - X0 W^T|^2 / |X0 W^T|^2 on judging rows X, which no way has seen; X0 are the original's inputs for
the same tokens, or X where they are not known. Of equal ways the simpler is taken.
If H has no factor (it is 0 or not finite), GPTQ does not run, and `Rounded.damp` is None.
"""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.array_types import F32, I8, I32
from g4convert.calibration.moments import Moments
from g4convert.calibration.team import Team, row_tiles
from g4convert.devices import CPU
from g4convert.errors import InputError
from g4convert.quantization import NonFiniteError, Scheme, TileStats
from g4convert.quantization.factor import Factor, damping, factorize
from g4convert.quantization.gptq import gptq, nearest_codes
from g4convert.quantization.tiles import CpuTiles
from g4convert.quantization.weighted import weighted_scales
from g4convert.tensors import DType

_NIBBLE, _BYTE = 4, 8


class Way(StrEnum):
    """Ways to round a weight, the simplest first."""

    DATA_FREE = "data_free"
    IMATRIX = "imatrix"
    GPTQ = "gptq"


@dataclass(frozen=True, slots=True)
class Rounded:
    """A rounded weight, and the errors of each way.

    Args:
        codes: int8 [n, k].
        scale: float32 [n, groups], exact in bf16.
        way: the way with the least error, which was taken.
        errors: relative output error of each way on the judging rows.
        tokens: number of rows in H.
        damp: value added to H's diagonal, divided by the diagonal's mean; None if H had no factor.
        stats: statistics of the rounding error of the weight itself.
    """

    codes: I8
    scale: F32
    way: Way
    errors: dict[Way, float]
    tokens: int
    damp: float | None
    stats: TileStats


@dataclass(frozen=True, slots=True)
class Aim:
    """The original's outputs, which a weight aims at on inputs that are off.

    Args:
        weight: the weight moved towards the one that gives them, float32 [n, k], of which only the rows of this rank
            are; None if H had no factor.
        judges: the original's inputs for the judging rows, float32 [t, k].
    """

    weight: F32 | None
    judges: F32


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding of weights on calibration data.

    Args:
        schemes: bits and groups of each weight, by module; their method is used for the way `data_free`.
        team: ranks and threads that each take some rows.
        device: device of the outputs that are compared.
    """

    schemes: Mapping[str, Scheme]
    team: Team
    device: torch.device = CPU

    @property
    def alone(self) -> Self:
        """The same, for weights that no other rank rounds with this one."""
        return replace(self, team=self.team.alone)

    def factor(self, moments: Moments) -> Factor | None:
        """Take H, and return its factor for GPTQ; None if it has none."""
        return factorize(moments.take(), damping(moments.tokens, len(moments.squares)))

    def round(  # noqa: PLR0913, PLR0917 -- a weight, and what it is rounded by
        self, name: str, w: F32, moments: Moments, factor: Factor | None, judges: F32, aim: Aim | None = None
    ) -> Rounded:
        """Round a weight in every way and return the best result.

        Args:
            name: name of the module, for its scheme and for errors.
            w: float32 [n, k].
            moments: moments of the module's inputs, whose H was taken.
            factor: factor of their H; weights with the same inputs share it.
            judges: judging rows [t, k], which are not in H.
            aim: what the original gives; None where it is not known.

        Raises:
            InputError: a weight is not finite.
        """
        scheme, rows = self.schemes[name], self.team.rows(len(w))
        moved = w if aim is None or aim.weight is None else aim.weight
        ways: dict[Way, tuple[I8, F32]] = {}

        def own() -> list[list[float]]:
            ways.update(self._ways(name, w[rows], moved[rows], moments, factor))
            return self._energies(w[rows], judges, ways, judges if aim is None else aim.judges)

        tiles = [tile for part in self.team.ranks.together(own) for tile in part]
        whole, *lost = np.sum(tiles, axis=0).tolist()
        errors = {way: one / whole if whole else 0.0 for way, one in zip(ways, lost, strict=True)}
        best = min(errors, key=lambda way: errors[way])  # the first of equals
        codes, scale = (self._gather_rows(one, len(w)) for one in ways[best])
        damp = None if factor is None else factor.damp
        return Rounded(codes, scale, best, errors, moments.tokens, damp, stats_of(scheme, w, codes, scale))

    def _ways(
        self, name: str, w: F32, moved: F32, moments: Moments, factor: Factor | None
    ) -> dict[Way, tuple[I8, F32]]:
        """Round rows of a weight in every way."""
        scheme = self.schemes[name]
        ways = {Way.DATA_FREE: self._data_free(name, w), Way.IMATRIX: self._weighted(moved, moments, scheme)}
        if factor is not None:
            scale = ways[Way.IMATRIX][1]
            ways[Way.GPTQ] = gptq(moved, scale, factor, self.team.pool, scheme.code_max), scale
        return ways

    def _data_free(self, name: str, w: F32) -> tuple[I8, F32]:
        scheme = self.schemes[name]
        packed, scale = quantize_in_memory(f"{name}.weight", w, scheme, self.team.pool)
        return codes_of(packed, scheme.num_bits)[:, : w.shape[1]], scale

    def _weighted(self, w: F32, moments: Moments, scheme: Scheme) -> tuple[I8, F32]:
        n, k = w.shape
        scale, codes = np.empty((n, scheme.groups(k)), np.float32), np.empty((n, k), np.int8)
        squares, high = moments.mean_squares, scheme.code_max

        def do(rows: slice) -> None:
            scale[rows] = weighted_scales(w[rows], squares, scheme.group(k), high)
            codes[rows] = nearest_codes(w[rows], scale[rows], high)

        self.team.do(do, row_tiles(n))
        return codes, scale

    def _energies(self, w: F32, judges: F32, ways: Mapping[Way, tuple[I8, F32]], others: F32) -> list[list[float]]:
        """Return [|X0 W^T|^2, |X Q^T - X0 W^T|^2 of each way] of each tile of rows."""
        x, x0 = self._on_device(judges), self._on_device(others)

        def energies(rows: slice) -> list[float]:
            wanted = x0 @ self._on_device(w[rows]).T
            off = (
                x @ self._on_device(dequantize(codes[rows], scale[rows])).T - wanted for codes, scale in ways.values()
            )
            return [_energy(wanted), *map(_energy, off)]

        return [*self.team.pool.map(energies, row_tiles(len(w)))]

    def _gather_rows(self, own: NDArray[Any], n: int) -> Any:  # noqa: ANN401 -- the type of `own`
        """Return all rows, those of other ranks included."""
        if self.team.ranks.world == 1:
            return own
        whole = np.empty((n, *own.shape[1:]), own.dtype)
        whole[self.team.rows(n)] = own
        self.team.spread_rows(torch.from_numpy(whole))
        return whole

    def _on_device(self, array: F32) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def dequantize(codes: I8, scale: F32) -> F32:
    """Return `code * scale`, float32 [n, k]."""
    n, groups = scale.shape
    values: F32 = codes.reshape(n, groups, -1) * scale[:, :, None]
    return values.reshape(codes.shape)


def _energy(y: torch.Tensor) -> float:
    """Return the sum of squares."""
    return float(y.square().sum(dtype=torch.float64))


def quantize_in_memory(
    name: str, w: F32, scheme: Scheme, pool: Executor, squares: F32 | None = None
) -> tuple[I32, F32]:
    """Quantize a weight in memory by a method that works tile by tile.

    Args:
        name: name of the weight, for the error.
        w: float32 [n, k].
        scheme: bits, group size and method.
        pool: threads that each take some rows.
        squares: E[x^2] of its inputs, float32 [k], for `imatrix`.

    Returns:
        Packed words, int32 [n, words of a row], and scales, float32 [n, groups], exact in bf16.

    Raises:
        InputError: a value is NaN or infinite.
    """
    n, k = w.shape
    packed, scale = np.empty((n, scheme.words(k)), np.int32), np.empty((n, scheme.groups(k)), np.uint16)

    def do(rows: slice) -> None:
        CpuTiles().quantize(w[rows], DType.F32, scheme, packed[rows], scale[rows], squares)

    try:
        for _ in pool.map(do, row_tiles(n)):
            pass
    except NonFiniteError as error:
        hint = "download it again, or take an earlier checkpoint of the training, which diverged"
        raise InputError(f"{name}: a weight is NaN or infinite", hint=hint) from error
    return packed, (scale.astype(np.uint32) << 16).view(np.float32)


def codes_of(packed: I32, num_bits: int) -> I8:
    """Unpack words, int8 [n, codes of a row]."""
    stored = packed.view(np.uint8)
    if num_bits == _BYTE:
        return (stored ^ 0x80).view(np.int8)
    nibbles = np.stack((stored & 0xF, stored >> 4), axis=-1).reshape(len(packed), 2 * stored.shape[1])
    return nibbles.view(np.int8) - np.int8(8)


def pack_words(codes: I8, num_bits: int) -> I32:
    """Pack codes as compressed-tensors does: the first code in the lowest bits, each plus half the range.

    Args:
        codes: int8 [n, k], k a multiple of 32 / num_bits.
        num_bits: 4 or 8.

    Returns:
        int32 [n, k * num_bits / 32].
    """
    if num_bits == _BYTE:
        stored = codes.view(np.uint8) ^ np.uint8(0x80)
    else:
        raised = (codes + np.int8(8)).view(np.uint8)
        stored = raised[:, ::2] | (raised[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(stored).view(np.int32)


def stats_of(scheme: Scheme, w: F32, codes: I8, scale: F32) -> TileStats:
    """Return statistics of rounding a weight [n, k] to codes [n, k] on scales [n, groups]."""
    squares = np.empty(w.shape)  # for the widest Linear of 31B 0.9 GB, so one array serves both sums
    for rows in row_tiles(len(w)):
        squares[rows] = dequantize(codes[rows], scale[rows])
        squares[rows] -= w[rows]
    squared_error = float(np.square(squares, out=squares).sum())
    squared_weight = float(np.square(w, out=squares, dtype=np.float64).sum())
    del squares
    return TileStats(
        weights=w.size,
        groups=scale.size,
        squared_error=squared_error,
        squared_weight=squared_weight,
        zero_codes=int((codes == 0).sum()),
        saturated_codes=int(((codes == scheme.code_max) | (codes == -scheme.code_max - 1)).sum()),
    )
