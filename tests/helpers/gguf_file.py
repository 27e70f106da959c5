"""Writes GGUF by its documented layout: values, float32 tensors; and importance matrices as llama-imatrix does."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from g4convert.conversion.statistics import Statistics

__all__ = ["NAMES", "gguf_bytes", "imatrix_bytes"]

ALIGNMENT = 32
NAMES = {
    "self_attn.q_proj": ("attn_q", "attn_k"),
    "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
    "experts.gate_proj": ("ffn_gate_up_exps",),
    "experts.down_proj": ("ffn_down_exps",),
    "per_layer_input_gate": ("inp_gate",),
    "per_layer_projection": ("proj",),
}
"""Names in a block of the weights that take what a module takes."""


def gguf_bytes(
    values: Mapping[str, int | str | list[str]], tensors: Mapping[str, np.ndarray], version: int = 3
) -> bytes:
    """A whole file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        head += _string(key) + _value(value)
    data = b""
    for name, array in tensors.items():
        dimensions = array.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, 0, len(data))
        stored = array.astype("<f4").tobytes()
        data += stored + bytes(-len(stored) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data


def imatrix_bytes(found: Statistics, chunks: int = 3, size: int = 24) -> bytes:
    """Statistics as an importance matrix: sums and counts of every weight, those of the router and the output, too."""
    tensors = {}
    for module, inputs in found.inputs.items():
        layer, _, path = module.removeprefix("layers.").partition(".")
        for name in NAMES.get(path, ()):
            squares = np.atleast_2d(inputs.mean_square).astype(np.float64)
            base = f"blk.{layer}.{name}.weight"
            tensors[f"{base}.in_sum"] = np.zeros_like(squares)
            tensors[f"{base}.in_sum2"] = squares * inputs.tokens[:, None]
            tensors[f"{base}.counts"] = inputs.tokens[:, None]
    for base in ("output.weight", "blk.0.ffn_gate_inp.weight"):
        tensors[f"{base}.in_sum2"], tensors[f"{base}.counts"] = np.ones((1, 8)), np.ones((1, 1))
    values = {"general.type": "imatrix", "imatrix.datasets": ["a.txt", "b.txt"]}
    return gguf_bytes(values | {"imatrix.chunk_count": chunks, "imatrix.chunk_size": size}, tensors)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: int | str | list[str]) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
