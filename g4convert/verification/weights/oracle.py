"""Comparison of this level's decoder with compressed-tensors, on some rows of each kind of weight.

The compiled loop sums squared errors without building a dequantized weight. Here compressed-tensors unpacks the
codes, subtracts zero points and multiplies by the scales; its squared error must equal that of the compiled loop.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

from g4convert.forward.pieces import check_words
from g4convert.names import Name
from g4convert.report import Finding, Severity, join_alike
from g4convert.verification.weights.measured import PackedPair, RowTile, measure_tile, read_tile

_ROWS: Final = 32
_AGREE: Final = 2.0**-12
"""Largest relative difference between a sum of squared weights in float32 and the same sum in float64."""


def check_decoder(packed: Mapping[str, PackedPair]) -> Iterator[Finding]:
    """Decode the first rows of one weight of each kind with both decoders, and compare the squared errors."""
    kinds = {(Name(name).kind, pair.num_bits, pair.scale.shape): pair for name, pair in packed.items()}
    wrong: list[Finding] = []
    for pair in kinds.values():
        tile = read_tile(pair, 0, min(_ROWS, pair.source.shape[0]))
        error, expected, signal = measure_tile(tile).error, *error_of(tile)
        if np.isfinite(tile.scale).all() and abs(error - expected) > _AGREE * (signal + expected):
            found = f"squared error {error:.6g}, dequantized by compressed-tensors {expected:.6g}"
            remedy = "report this with the versions of g4convert and compressed-tensors: one of them reads it wrongly"
            wrong.append(Finding("weights.decoder", Severity.FAIL, pair.name, found, "the same", remedy))
    yield from join_alike(wrong)
    if kinds and not wrong:
        subject = f"the first rows of {len(kinds)} kinds of weights"
        yield Finding("weights.decoder", Severity.PASS, subject, "compressed-tensors' code leaves the same error", "")


def error_of(tile: RowTile) -> tuple[float, float]:
    """Return the squared error of a tile dequantized by compressed-tensors, and its squared weights, in float64."""
    check_words(tile.num_bits)
    shape = torch.Size(tile.source.shape)
    groups = tile.scale.shape[1]
    strategy = {"strategy": "group", "group_size": shape[1] // groups} if groups > 1 else {"strategy": "channel"}
    scheme = QuantizationArgs(num_bits=tile.num_bits, symmetric=not tile.zeros.size, **strategy)
    codes = unpack_from_int32(torch.from_numpy(tile.words), tile.num_bits, shape)
    zeros = torch.from_numpy(tile.zeros) if tile.zeros.size else None
    dense = dequantize(codes, torch.from_numpy(tile.scale), zeros, scheme, dtype=torch.float32).double()
    bits = tile.source if tile.source.dtype == np.uint32 else tile.source.astype(np.uint32) << 16
    source = torch.from_numpy(bits.view(np.float32)).double()
    return float((dense - source).square().sum()), float(source.square().sum())
