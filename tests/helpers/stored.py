"""Writes safetensors files byte by byte: valid ones, and ones broken on purpose. Pure Python, no torch."""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from g4convert.tensors import DType

Stored = tuple[str, Sequence[int], bytes]
"""dtype, shape, bytes."""

CONFIG: dict[str, Any] = {"model_type": "gemma4", "text_config": {"hidden_size": 8}}


def zeros(dtype: str, *shape: int) -> Stored:
    """A tensor of zero bytes."""
    return dtype, shape, bytes(prod(shape) * DType(dtype).itemsize)


def entries(tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """The header entries of tensors laid out one after the other."""
    table: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        begin, end = end, end + len(data)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return table


def encode(tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None) -> bytes:
    """A valid file."""
    table = entries(tensors) if metadata is None else {"__metadata__": dict(metadata), **entries(tensors)}
    return encode_raw(table, b"".join(data for _, _, data in tensors.values()))


def encode_raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Any file: the header as bytes or as a JSON value, a length that may lie, any data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write_checkpoint(
    directory: Path,
    shards: Mapping[str, Mapping[str, Stored]],
    *,
    config: Mapping[str, Any] | None = None,
    index: bool = True,
) -> Path:
    """A checkpoint directory: config.json, the shards, and an index unless told not to."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    for file, tensors in shards.items():
        (directory / file).write_bytes(encode(tensors))
    if index:
        write_index(directory, {name: file for file, tensors in shards.items() for name in tensors})
    return directory


def write_index(directory: Path, weight_map: object, metadata: object = None) -> None:
    """model.safetensors.index.json with any content."""
    table = {"metadata": {"total_size": 0} if metadata is None else metadata, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(table))
