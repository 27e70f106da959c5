"""Turns tiles of weights into packed codes and scales; knows nothing of models or files.

scheme        Defines a scheme and the statistics of its result; values only
source        Describes the conversion of bf16, fp16 and fp32 words to fp32; values only
arrays        Checks the arrays that tiles take and give
tiles         `CpuTiles`: compiled arithmetic, one object for each worker thread
compiled      Defines the arguments and small operations that compiled loops share
steps         Loads, finds min-max scales, rounds and packs: shared by every method
search        Searches the scale with the least squared error
imatrix       Searches the scale with the least error weighted by the inputs' mean squares, tile by tile
weighted      Searches the same for whole weights, for `gptq`
factor        Orders, damps and factorises the sum H of products of inputs, for `gptq`
gptq          Rounds column by column, and corrects later columns for the error
lattice       Finds the grid that quantization-aware training left in weights
torch_tiles   `TorchTiles`: the same arithmetic in torch, the same bits, for GPUs
torch_search  Finds the scales of all groups of such a tile, by every method but `gptq`

Only values are imported here: `import g4convert.quantization` loads neither numpy nor numba.
"""

from g4convert.quantization.scheme import Method, NonFiniteError, Scheme, Tiles, TileStats

__all__ = ["Method", "NonFiniteError", "Scheme", "TileStats", "Tiles"]
