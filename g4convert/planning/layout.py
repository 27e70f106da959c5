"""The file and offset of every output byte, decided before the first is written.

A shard is a safetensors file: an 8-byte little-endian header length, the JSON header padded with spaces to a
multiple of 8, then the tensors without gaps. Steps fill shards in the plan's order, a step's tensors always
together, so a module is never torn between files. Inside a shard tensors are ordered by dtype width, widest
first, so that each starts at a multiple of its item size without padding; `weight_shape`, whose values are
part of the plan, therefore comes right after the header and is written with it.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from g4convert.planning.plan import Copy, Plan, Quantize, outputs_of
from g4convert.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class Placed:
    """An output tensor, its file, and the absolute byte offset at which it begins there."""

    info: TensorInfo
    file: str
    begin: int


@dataclass(frozen=True, slots=True)
class Shard:
    """An output file: its name, its size in bytes, and its first bytes (header and constants)."""

    file: str
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Every shard, and every output tensor by name."""

    shards: tuple[Shard, ...]
    placed: Mapping[str, Placed]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(placed.info.nbytes for placed in self.placed.values())

    def index(self) -> dict[str, object]:
        """Return the content of `model.safetensors.index.json`."""
        return {
            "metadata": {"total_size": self.tensor_bytes},
            "weight_map": {name: self.placed[name].file for name in sorted(self.placed)},
        }


def lay_out(plan: Plan) -> Layout:
    """Give every output tensor of a plan its file and offset, in files of at most `max_shard_size` bytes.

    The limit counts tensor bytes; one module larger than it gets a file of its own.
    """
    bins = list(_fill_shards(plan))
    shards: list[Shard] = []
    placed: dict[str, Placed] = {}
    for number, steps in enumerate(bins, start=1):
        file = f"model-{number:05d}-of-{len(bins):05d}.safetensors"
        shard, tensors = _make_shard(file, steps)
        shards.append(shard)
        placed |= tensors
    return Layout(tuple(shards), placed)


def _fill_shards(plan: Plan) -> Iterable[list[Copy | Quantize]]:
    steps: list[Copy | Quantize] = []
    room = plan.recipe.max_shard_size
    for step in plan.steps:
        if not isinstance(step, (Copy, Quantize)):
            continue
        nbytes = sum(info.nbytes for info in outputs_of(step))
        if steps and nbytes > room:
            yield steps
            steps, room = [], plan.recipe.max_shard_size
        steps.append(step)
        room -= nbytes
    yield steps


def _make_shard(file: str, steps: list[Copy | Quantize]) -> tuple[Shard, dict[str, Placed]]:
    outputs = sorted((info for step in steps for info in outputs_of(step)), key=lambda info: -info.dtype.itemsize)
    constants = {
        step.shape.name: struct.pack("<2q", *step.weight.shape) for step in steps if isinstance(step, Quantize)
    }
    # Other 8-byte tensors (an assistant's token order) follow the constants, which are written with the header.
    outputs.sort(key=lambda info: (-info.dtype.itemsize, info.name not in constants))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: list[int] = []
    position = 0
    for info in outputs:
        end = position + info.nbytes
        header[info.name] = {"dtype": info.dtype.value, "shape": info.shape, "data_offsets": (position, end)}
        begins.append(position)
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    head = struct.pack("<Q", len(text)) + text + b"".join(constants[i.name] for i in outputs if i.name in constants)
    placed = {info.name: Placed(info, file, data + begin) for info, begin in zip(outputs, begins, strict=True)}
    return Shard(file, data + position, head), placed
