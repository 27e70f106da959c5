"""Reads a whole weight of the source, for methods that need all of it at once."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.planning.steps import Quantize
from g4convert.tensors import DType

__all__ = ["source_weight"]

_DTYPES: Final = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}


def source_weight(step: Quantize, checkpoint: Checkpoint, reader: Reader) -> NDArray[np.float32]:
    """Read the weight of a step.

    Args:
        step: step of this checkpoint's plan.
        checkpoint: the source.
        reader: reader of the source's files.

    Returns:
        The weight, float32 [n, k].
    """
    weight, segment = step.weight, step.weight.segment
    stored = checkpoint.tensors[segment.source]
    data = reader.read(stored.file, stored.begin + segment.begin, segment.end - segment.begin)
    found: NDArray[np.float32] = torch.frombuffer(data, dtype=_DTYPES[weight.dtype]).float().numpy()
    return found.reshape(weight.shape)
