"""`TorchTiles`: the arithmetic of `CpuTiles` in torch, for a GPU; the same bits.

A tile is laid out as groups [r, m], `torch_search` finds their scales, and the codes are packed.

Memory: 5 times the tile in fp32, 8 with `lattice`. A GPU wants tiles of 16 M weights or more, not cache-sized ones.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g4convert.array_types import F32, I32, U16
from g4convert.quantization.arrays import check_outputs, check_rows, check_squares
from g4convert.quantization.imatrix import relative
from g4convert.quantization.scheme import Method, NonFiniteError, Scheme, TileStats
from g4convert.quantization.source import FORMATS
from g4convert.quantization.torch_search import (
    METHODS,
    Groups,
    find_steps,
    imatrix,
    nearest,
    square_sum,
    squared,
)
from g4convert.tensors import DType

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}
"""Torch dtypes of weights and scales."""


class TorchTiles:
    """Quantizes tiles of rows on a torch device; see `Tiles` for the calls.

    Args:
        device: device that computes; a CPU gives the same bits, slower than `CpuTiles`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

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
        check_rows(rows, dtype)
        check_outputs(scheme, (rows.shape[0], rows.shape[1]), packed, scale)
        if rows.shape[0] == 0:
            return TileStats()
        groups = self._load(rows, dtype, scheme)
        if scheme.method is Method.IMATRIX:
            chosen = imatrix(groups, scheme, self._weights(check_squares(squares, rows.shape[1]), groups))
        else:
            chosen = METHODS[scheme.method](groups, scheme)
        u = groups.w / chosen.scale
        q = nearest(u, scheme)
        packed[:] = _pack(q[: groups.g], scheme.num_bits).reshape(packed.shape).cpu().numpy()
        bits = chosen.scale.to(torch.bfloat16).view(torch.int16)
        scale[:] = bits.reshape(scale.shape).cpu().numpy().view(np.uint16)
        error, weight = _total(square_sum(u - q), chosen.scale), _total(square_sum(u), chosen.scale)
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
        """Return the share of the groups of `rows` [n, k] that lie on a 4-bit grid."""
        check_rows(rows, dtype)
        scheme = Scheme(4, group_size, Method.LATTICE)
        if rows.shape[0] * scheme.groups(rows.shape[1]) == 0:
            return 0.0
        groups = self._load(rows, dtype, scheme)
        return int(find_steps(groups, scheme).lattice.sum()) / groups.peak.numel()

    def _weights(self, squares: F32, groups: Groups) -> Tensor:
        """Return weights of squared errors, fp32 [r, m]."""
        of = torch.from_numpy(relative(squares, groups.g)).to(self._device)
        padded = torch.nn.functional.pad(of, (0, -groups.g % 8)).t()
        return padded.repeat(1, groups.peak.numel() // of.shape[0])

    def _load(self, rows: NDArray[Any], dtype: DType, scheme: Scheme) -> Groups:
        words = rows if rows.flags.writeable else rows.copy()  # torch warns of read-only memory
        g = scheme.group(rows.shape[1])
        flat = torch.from_numpy(words.view(np.float32 if dtype is DType.F32 else np.int16)).to(self._device)
        w = flat.view(TORCH_DTYPES[dtype]).float().reshape(-1, g)
        finite = torch.isfinite(w)
        if not bool(finite.all()):
            first = int((~finite).flatten().to(torch.uint8).argmax())
            raise NonFiniteError(*divmod(first, rows.shape[1]))
        w = torch.nn.functional.pad(w, (0, -g % 8)).t().contiguous()
        top, bottom = w.amax(0).clamp(min=0), (-w.amin(0)).clamp(min=0)
        return Groups(
            w=w,
            g=g,
            peak=torch.maximum(top, bottom),
            sign=torch.where(bottom >= top, 1.0, -1.0),
            source=FORMATS[dtype],
        )


def _total(sums: Tensor, scale: Tensor) -> float:
    """Sum the groups' sums times the squared scale, one after the other, in fp64."""
    terms = (sums.double() * squared(scale)).cpu().numpy()
    return float(np.add.accumulate(terms)[-1])


def _pack(q: Tensor, num_bits: int) -> Tensor:
    """Pack codes fp32 [g, m] into int32 words [m, ceil(g * num_bits / 32)], the first code lowest."""
    per_word = 32 // num_bits
    fields = q.to(torch.int32) + (1 << (num_bits - 1))
    fields = torch.nn.functional.pad(fields, (0, 0, 0, -q.shape[0] % per_word)).view(-1, per_word, q.shape[1])
    words = torch.zeros_like(fields[:, 0])
    for j in range(per_word):
        words |= fields[:, j] << (num_bits * j)
    return words.t().contiguous()
