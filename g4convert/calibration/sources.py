"""Reads a whole weight of the source, for methods that need all of it at once."""

import torch

from g4convert.array_types import F32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.planning.plan import Quantize
from g4convert.quantization.torch_tiles import TORCH_DTYPES

__all__ = ["source_weight"]


def source_weight(step: Quantize, checkpoint: Checkpoint, reader: Reader) -> F32:
    """Read the weight of a step.

    Returns:
        The weight, float32 [n, k].
    """
    weight, segment = step.weight, step.weight.segment
    stored = checkpoint.tensors[segment.source]
    data = reader.read(stored.file, stored.begin + segment.begin, segment.end - segment.begin)
    found: F32 = torch.frombuffer(data, dtype=TORCH_DTYPES[weight.dtype]).float().numpy()
    return found.reshape(weight.shape)
