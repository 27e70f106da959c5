"""Tensor math: from tiles of weights to packed codes and scales.

    scheme        what is asked for and what is reported; values only, planning imports them
    source        how the words of bf16, fp16 and fp32 read as fp32; values only
    tiles         `CpuTiles`: numba kernels, one object per worker thread
      kernels     load, scales, codes, packing: the steps every method shares
      search      `mse`: the search for the scale with the least squared error
      lattice     `lattice`: the grid that a quantization-aware training left in the weights
    torch_tiles   `TorchTiles`: the same arithmetic in torch, for a GPU; the same bits

Only the values are imported here: `import g4convert.quantization` costs neither numpy nor numba.
"""

from g4convert.quantization.scheme import Method, NonFiniteError, Scheme, Tiles, TileStats

__all__ = ["Method", "NonFiniteError", "Scheme", "TileStats", "Tiles"]
