"""`TorchTiles`: the arithmetic of `CpuTiles` in torch, for a GPU; the same bits.

Each operation is one elementwise torch kernel, correctly rounded, so there is no fused multiply-add; sums take the
order that `kernels` documents; what the result does not depend on (largest, smallest, counts) is left to torch.

Layout: all groups of a tile at once, as `w` [r, m]: element i of m groups, r = g rounded up to a multiple of 8.
Memory: some 14 times that of the tile in fp32. A GPU wants tiles of 16 M weights or more, not cache-sized ones.

A trap: torch on CUDA divides by a number by multiplying with its reciprocal, so divisors are tensors here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g4convert.quantize.arrays import check_outputs, check_rows
from g4convert.quantize.scheme import Method, NonFiniteError, Scheme, TileStats
from g4convert.quantize.source import FORMATS, SourceFormat
from g4convert.tensors import DType

__all__ = ["TorchTiles"]

_EPS = 2.0**-23
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_RUN = 16  # sums of 8


class _Groups(NamedTuple):
    """Weights `w` fp32 [r, m] of `g` elements a group; of each group `peak` [m] and `sign` [m], as `Block`."""

    w: Tensor
    g: int
    peak: Tensor
    sign: Tensor
    source: SourceFormat


class _Chosen(NamedTuple):
    """Scales fp32 [m], and which groups are on a grid, which of those exact: bool [m]."""

    scale: Tensor
    lattice: Tensor
    exact: Tensor


class TorchTiles:
    """Quantizes tiles of rows on a torch device; see `Tiles` for the calls.

    Args:
        device: where to compute; a CPU gives the same bits, slower than `CpuTiles`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def quantize(
        self,
        rows: NDArray[Any],
        dtype: DType,
        scheme: Scheme,
        packed: NDArray[np.int32],
        scale: NDArray[np.uint16],
    ) -> TileStats:
        """Quantize `rows` [n, k] into `packed` and `scale`."""
        check_rows(rows, dtype)
        check_outputs(scheme, (rows.shape[0], rows.shape[1]), packed, scale)
        if rows.shape[0] == 0:
            return TileStats()
        groups = self._load(rows, dtype, scheme)
        chosen = _METHODS[scheme.method](groups, scheme)
        u = groups.w / chosen.scale
        q = _nearest(u, scheme)
        packed[:] = _pack(q[: groups.g], scheme.num_bits).reshape(packed.shape).cpu().numpy()
        bits = chosen.scale.to(torch.bfloat16).view(torch.int16)
        scale[:] = bits.reshape(scale.shape).cpu().numpy().view(np.uint16)
        error, weight = _total(_square_sum(u - q), chosen.scale), _total(_square_sum(u), chosen.scale)
        q = q[: groups.g]
        return TileStats(
            weights=rows.size,
            groups=scale.size,
            squared_error=error,
            squared_weight=weight,
            zero_codes=int((q == 0).sum()),
            saturated_codes=int((q == scheme.code_max).sum() + (q == -scheme.code_max - 1).sum()),
            lattice_groups=int(chosen.lattice.sum()),
            exact_groups=int(chosen.exact.sum()),
        )

    def lattice_share(self, rows: NDArray[Any], dtype: DType, group_size: int | None) -> float:
        """Share of the groups of `rows` [n, k] that lie on a 4-bit grid."""
        check_rows(rows, dtype)
        scheme = Scheme(4, group_size, Method.LATTICE)
        if rows.shape[0] * scheme.groups(rows.shape[1]) == 0:
            return 0.0
        groups = self._load(rows, dtype, scheme)
        return int(_find_steps(groups, scheme).lattice.sum()) / groups.peak.numel()

    def _load(self, rows: NDArray[Any], dtype: DType, scheme: Scheme) -> _Groups:
        words = rows if rows.flags.writeable else rows.copy()  # torch warns of read-only memory
        g = scheme.group(rows.shape[1])
        flat = torch.from_numpy(words.view(np.float32 if dtype is DType.F32 else np.int16)).to(self._device)
        w = flat.view(_TORCH[dtype]).float().reshape(-1, g)
        finite = torch.isfinite(w)
        if not bool(finite.all()):
            first = int((~finite).flatten().to(torch.uint8).argmax())
            raise NonFiniteError(*divmod(first, rows.shape[1]))
        w = torch.nn.functional.pad(w, (0, -g % 8)).t().contiguous()
        top, bottom = w.amax(0).clamp(min=0), (-w.amin(0)).clamp(min=0)
        return _Groups(
            w=w,
            g=g,
            peak=torch.maximum(top, bottom),
            sign=torch.where(bottom >= top, 1.0, -1.0),
            source=FORMATS[dtype],
        )


_TORCH = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}


def _minmax(groups: _Groups, scheme: Scheme) -> _Chosen:
    scale = _round_bf16(groups.peak / torch.full_like(groups.peak, scheme.divisor))
    no = torch.zeros_like(scale, dtype=torch.bool)
    return _Chosen(torch.where(scale > 0, scale, _EPS), no, no)
