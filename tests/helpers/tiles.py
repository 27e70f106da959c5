"""Tiles as the quantizers make them, read back by compressed-tensors."""

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from numpy.typing import NDArray

from g4convert.quantization import Scheme, Tiles, TileStats
from g4convert.quantization.tiles import CpuTiles
from g4convert.tensors import DType

TORCH = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}


class Result:
    """Results of a tile: outputs as written, and read back by compressed-tensors."""

    def __init__(self, tiles: Tiles, weight: torch.Tensor, scheme: Scheme) -> None:
        rows, dtype = words(weight)
        n, k = rows.shape
        self.packed = np.full((n, scheme.words(k)), -1, np.int32)
        self.scale_bits = np.full((n, scheme.groups(k)), 0xFFFF, np.uint16)
        self.stats: TileStats = tiles.quantize(rows, dtype, scheme, self.packed, self.scale_bits)
        packed = torch.from_numpy(self.packed)
        group = (n, scheme.groups(k), scheme.group(k))
        self.codes = unpack_from_int32(packed, scheme.num_bits, torch.Size((n, k))).reshape(group)
        self.scale = torch.from_numpy(self.scale_bits.view(np.int16)).view(torch.bfloat16).unsqueeze(-1)
        self.values = self.codes.double() * self.scale.double()
        self.weight = weight.double().reshape(group)

    def group_error(self) -> torch.Tensor:
        """Squared error of each group, float64 [n, groups]."""
        return (self.values - self.weight).square().sum(-1)

    def relative_error(self) -> float:
        """Squared error over squared weight."""
        return float(self.group_error().sum() / self.weight.square().sum())


def words(weight: torch.Tensor) -> tuple[NDArray[np.generic], DType]:
    """A tensor's words as the kernels take them."""
    dtype = next(name for name, kind in TORCH.items() if kind is weight.dtype)
    if dtype is DType.F32:
        return weight.numpy(), dtype
    return weight.view(torch.int16).numpy().view(np.uint16), dtype


def run(weight: torch.Tensor, scheme: Scheme) -> Result:
    return Result(CpuTiles(), weight, scheme)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)
