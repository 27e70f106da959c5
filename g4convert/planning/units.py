"""The plan as units of work that can run in any order and in any process.

A task reads one byte range of a source file and writes fixed byte ranges of output files. Tasks are sorted by source
offset, so that a run streams through the source, and gathered into units of about 16 MiB. A worker takes a unit at a
time, the journal records units, and a kill loses at most one unit per worker.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from g4convert.checkpoint.directory import Checkpoint
from g4convert.planning.layers import layer_steps
from g4convert.planning.layout import Layout, Placed
from g4convert.planning.plan import Copy, Plan, Quantize
from g4convert.tensors import DType

_UNIT_BYTES = 16 << 20
_TILE_BYTES = 4 << 20
_COPY_BYTES = 16 << 20
_LANES = 64
"""Tiles have a multiple of this many rows: kernels work on 64 groups at once, per channel too."""


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A task that copies `nbytes` of a source file to an offset in an output file."""

    name: str
    file: str
    begin: int
    nbytes: int
    target_file: str
    target_begin: int


@dataclass(frozen=True, slots=True)
class MoveTask:
    """A task that writes a convolution stored as [out, *kernel, in] in the order [out, in, *kernel]."""

    name: str
    file: str
    begin: int
    shape: tuple[int, ...]
    """Shape as stored."""
    dtype: DType
    target_file: str
    target_begin: int

    @property
    def nbytes(self) -> int:
        """Source bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class QuantizeTask:
    """A task that quantizes rows [rows, k] of a Linear, from `first_row` on, and writes them to an output file."""

    step: int
    """Index into `plan.quantized`."""
    name: str
    file: str
    begin: int
    first_row: int
    rows: int
    k: int
    dtype: DType
    target_file: str
    packed_begin: int
    packed_row: int
    """Bytes of packed words in a row."""
    scale_begin: int
    groups: int
    """Scales in a row."""

    @property
    def nbytes(self) -> int:
        """Source bytes."""
        return self.rows * self.k * self.dtype.itemsize

    @property
    def scale_nbytes(self) -> int:
        """Bytes of the scales, 16 bits each."""
        return self.rows * self.groups * 2


Task = CopyTask | MoveTask | QuantizeTask
Unit = tuple[Task, ...]


def make_units(plan: Plan, layout: Layout, checkpoint: Checkpoint) -> tuple[Unit, ...]:
    """Return all units of a plan in the order of source bytes, then one unit per layer that is calibrated alone."""
    layers = layer_steps(plan)
    layered = {number for steps in layers.values() for number in steps.values()}
    tasks: list[Task] = []
    for copy in plan.copied:
        tasks += _make_copy_tasks(copy, layout.placed[copy.target.name], checkpoint)
    for number, step in enumerate(plan.quantized):
        if number not in layered:
            tasks += _make_quantize_tasks(number, step, layout, checkpoint)
    tasks.sort(key=lambda task: (task.file, task.begin, task.name))
    return (*_gather(tasks), *(_make_layer_unit(plan, steps, layout, checkpoint) for steps in layers.values()))


def _make_layer_unit(plan: Plan, steps: Mapping[str, int], layout: Layout, checkpoint: Checkpoint) -> Unit:
    """Return a whole layer as one unit."""
    quantized = plan.quantized
    return tuple(
        task
        for number in steps.values()
        for task in _make_quantize_tasks(number, quantized[number], layout, checkpoint)
    )


def _make_copy_tasks(step: Copy, placed: Placed, checkpoint: Checkpoint) -> Iterator[CopyTask | MoveTask]:
    target = placed.begin
    if step.channels_last:
        stored = checkpoint.tensors[step.segments[0].source]
        info = stored.info
        yield MoveTask(step.target.name, stored.file, stored.begin, info.shape, info.dtype, placed.file, target)
        return
    for segment in step.segments:
        stored = checkpoint.tensors[segment.source]
        for begin in range(segment.begin, segment.end, _COPY_BYTES):
            nbytes = min(_COPY_BYTES, segment.end - begin)
            yield CopyTask(step.target.name, stored.file, stored.begin + begin, nbytes, placed.file, target)
            target += nbytes


def _make_quantize_tasks(number: int, step: Quantize, layout: Layout, checkpoint: Checkpoint) -> Iterator[QuantizeTask]:
    weight = step.weight
    stored = checkpoint.tensors[weight.segment.source]
    packed, scale = layout.placed[step.packed.name], layout.placed[step.scale.name]
    n, k = weight.shape
    row = k * weight.dtype.itemsize
    packed_row, groups = step.packed.shape[1] * step.packed.dtype.itemsize, step.scale.shape[1]
    tile = max(_LANES, _TILE_BYTES // row // _LANES * _LANES)
    for first in range(0, n, tile):
        yield QuantizeTask(
            step=number,
            name=weight.module,
            file=stored.file,
            begin=stored.begin + weight.segment.begin + first * row,
            first_row=first,
            rows=min(tile, n - first),
            k=k,
            dtype=weight.dtype,
            target_file=packed.file,
            packed_begin=packed.begin + first * packed_row,
            packed_row=packed_row,
            scale_begin=scale.begin + first * groups * step.scale.dtype.itemsize,
            groups=groups,
        )


def _gather(tasks: Iterable[Task]) -> Iterator[Unit]:
    unit: list[Task] = []
    nbytes = 0
    for task in tasks:
        unit.append(task)
        nbytes += task.nbytes
        if nbytes >= _UNIT_BYTES:
            yield tuple(unit)
            unit, nbytes = [], 0
    if unit:
        yield tuple(unit)
