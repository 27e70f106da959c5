"""Places before bytes: the layout is a partition, the units write each byte once, whatever the sizes."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Checkpoints
from helpers.conversions import stored
from helpers.headers import opened
from helpers.released_configs import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.header import read_header
from g4convert.errors import UsageError
from g4convert.planning import units as work
from g4convert.planning.layout import Layout, lay_out
from g4convert.planning.plan import Copy, Plan, Quantize
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan
from g4convert.planning.units import CopyTask, QuantizeTask, Unit, make_units

Ranges = dict[str, list[tuple[int, int]]]


@cache
def opened_family(family: str) -> Checkpoint:
    return opened(FAMILIES[family])


@cache
def plan_of(family: str, recipe: str) -> Plan:
    return make_plan(opened_family(family), load(recipe, {"assistant": "pack"}).recipe)


def applying() -> list[tuple[str, str]]:
    found = []
    recipes = sorted(name for name, one in load_shipped().items() if not one.is_calibrated)
    for family in FAMILIES:
        for recipe in recipes:
            try:
                plan_of(family, recipe)
            except UsageError:
                continue
            found.append((family, recipe))
    return found


PLANS = st.deferred(lambda: st.sampled_from(applying()))  # collecting the tests makes no plan
SIZES = st.one_of(st.integers(1, 1 << 20), st.integers(1 << 20, 1 << 34))


def sized(family: str, recipe: str, size: int) -> Plan:
    plan = plan_of(family, recipe)
    return replace(plan, recipe=plan.recipe.model_copy(update={"max_shard_size": size}))


def outputs(step: Copy | Quantize) -> tuple[str, ...]:
    return (step.target.name,) if isinstance(step, Copy) else tuple(info.name for info in step.outputs)


def tile(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, none empty, joined where one begins where the one before ends; overlaps are an error."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        assert begin < end
        if joined and joined[-1][1] == begin:
            joined[-1] = joined[-1][0], end
        else:
            assert not joined or joined[-1][1] < begin
            joined.append((begin, end))
    return joined


def placed_ranges(layout: Layout) -> Ranges:
    ranges: Ranges = defaultdict(list)
    for placed in layout.placed.values():
        ranges[placed.file].append((placed.begin, placed.begin + placed.info.nbytes))
    return ranges


@given(PLANS, SIZES)
def test_a_layout_is_a_partition(which: tuple[str, str], size: int) -> None:
    plan = sized(*which, size)
    layout = lay_out(plan)
    steps = [step for step in plan.steps if isinstance(step, (Copy, Quantize))]
    assert sorted(layout.placed) == sorted(name for step in steps for name in outputs(step))
    ranges = placed_ranges(layout)
    assert sorted(ranges) == [shard.file for shard in layout.shards]
    for shard in layout.shards:
        length = int.from_bytes(shard.head[:8], "little")
        assert tile(ranges[shard.file]) == [(8 + length, shard.size)]
        assert (8 + length) % 8 == 0
    for name, placed in layout.placed.items():
        assert placed.info.name == name
        assert placed.begin % placed.info.dtype.itemsize == 0
    for step in steps:
        assert len({layout.placed[name].file for name in outputs(step)}) == 1, "a module torn between files"


@given(PLANS, SIZES)
def test_shards_keep_to_their_size(which: tuple[str, str], size: int) -> None:
    plan = sized(*which, size)
    layout = lay_out(plan)
    steps: dict[str, list[int]] = defaultdict(list)
    for step in plan.steps:
        if isinstance(step, (Copy, Quantize)):
            names = outputs(step)
            steps[layout.placed[names[0]].file].append(sum(layout.placed[name].info.nbytes for name in names))
    assert all(sum(sizes) <= size or len(sizes) == 1 for sizes in steps.values())
    files = list(steps)
    for file, following in pairwise(files):
        assert sum(steps[file]) + steps[following][0] > size, "a file ends before it has to"


@given(PLANS, SIZES)
def test_heads_are_headers_that_the_index_agrees_with(which: tuple[str, str], size: int) -> None:
    plan = sized(*which, size)
    layout = lay_out(plan)
    constants = {step.shape.name: step.weight.shape for step in plan.quantized}
    for shard in layout.shards:
        length = int.from_bytes(shard.head[:8], "little")
        header = json.loads(shard.head[8 : 8 + length])
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            placed = layout.placed[name]
            assert (entry["dtype"], entry["shape"]) == (placed.info.dtype.value, list(placed.info.shape))
            assert [8 + length + offset for offset in entry["data_offsets"]] == [
                placed.begin,
                placed.begin + placed.info.nbytes,
            ]
            if name in constants:  # written with the header
                values = shard.head[placed.begin : placed.begin + 16]
                assert [int.from_bytes(values[at : at + 8], "little") for at in (0, 8)] == list(constants[name])
        assert len(shard.head) == 8 + length + 16 * sum(name in constants for name in header)
    index = layout.index()
    assert index["weight_map"] == {name: layout.placed[name].file for name in sorted(layout.placed)}
    assert index["metadata"] == {"total_size": sum(placed.info.nbytes for placed in layout.placed.values())}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layout_is_a_function_of_the_plan(family: str) -> None:
    again = make_plan(opened(FAMILIES[family]), load(options={"assistant": "pack"}).recipe)
    assert lay_out(again) == lay_out(plan_of(family, "w4a16-g32"))


@pytest.mark.parametrize(("kind", "size"), [("assistant", 1000), ("e2b", 40_000), ("moe", 1 << 40)])
def test_files_of_zeros_at_their_places_are_read_by_both_readers(
    kind: str, size: int, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(checkpoints(kind))
    layout = lay_out(make_plan(checkpoint, load(options={"assistant": "pack", "max_shard_size": size}).recipe))
    for shard in layout.shards:
        (tmp_path / shard.file).write_bytes(shard.head + bytes(shard.size - len(shard.head)))
        for tensor in read_header(tmp_path, shard.file).tensors:
            placed = layout.placed[tensor.name]
            assert (tensor.info, tensor.file, tensor.begin) == (placed.info, placed.file, placed.begin)
    assert stored(tmp_path).keys() == layout.placed.keys()


def written(units: Iterable[Unit], layout: Layout) -> Ranges:
    """The output ranges of every task."""
    ranges: Ranges = defaultdict(list)
    for unit in units:
        for task in unit:
            match task:
                case CopyTask():
                    ranges[task.target_file].append((task.target_begin, task.target_begin + task.nbytes))
                case QuantizeTask():
                    codes = task.rows * task.packed_row
                    scales = task.rows * task.groups * 2
                    ranges[task.target_file].append((task.packed_begin, task.packed_begin + codes))
                    ranges[task.target_file].append((task.scale_begin, task.scale_begin + scales))
    for shard in layout.shards:
        ranges[shard.file].append((0, len(shard.head)))
    return ranges


@given(PLANS, SIZES, st.integers(1, 1 << 26), st.integers(1 << 20, 1 << 24), st.integers(1 << 22, 1 << 26))
def test_units_write_every_byte_once(
    which: tuple[str, str], size: int, unit_bytes: int, tile_bytes: int, copy_bytes: int
) -> None:
    plan, checkpoint = sized(*which, size), opened_family(which[0])
    layout = lay_out(plan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_UNIT_BYTES", unit_bytes)
        patch.setattr(work, "_TILE_BYTES", tile_bytes)
        patch.setattr(work, "_COPY_BYTES", copy_bytes)
        units = make_units(plan, layout, checkpoint)
        assert make_units(plan, layout, checkpoint) == units
    ranges = written(units, layout)
    assert {file: tile(found) for file, found in ranges.items()} == {s.file: [(0, s.size)] for s in layout.shards}
    for unit in units:
        assert unit
        assert sum(task.nbytes for task in unit[:-1]) < unit_bytes
        for task in unit:
            check_inside(task, plan, layout, checkpoint)
    order = [(task.file, task.begin) for unit in units for task in unit]
    assert order == sorted(order)


def check_inside(task: CopyTask | QuantizeTask, plan: Plan, layout: Layout, checkpoint: Checkpoint) -> None:
    """A task reads and writes inside its own tensors, and rows at the places of rows."""
    if isinstance(task, CopyTask):
        target = layout.placed[task.name]
        assert target.file == task.target_file
        assert target.begin <= task.target_begin
        assert task.target_begin + task.nbytes <= target.begin + target.info.nbytes
        return
    step = plan.quantized[task.step]
    weight, source = step.weight, checkpoint.tensors[step.weight.segment.source]
    assert (task.file, task.name, task.dtype, task.k) == (source.file, weight.module, weight.dtype, weight.shape[1])
    assert task.first_row % 64 == 0
    assert task.first_row + task.rows == weight.shape[0] or task.rows % 64 == 0
    assert task.begin == source.begin + weight.segment.begin + task.first_row * task.k * weight.dtype.itemsize
    assert task.begin + task.nbytes <= source.begin + weight.segment.end
    packed, scale = layout.placed[step.packed.name], layout.placed[step.scale.name]
    assert task.packed_begin == packed.begin + task.first_row * task.packed_row
    assert task.packed_begin + task.rows * task.packed_row <= packed.begin + packed.info.nbytes
    assert task.scale_begin == scale.begin + task.first_row * task.groups * 2
    assert task.scale_begin + task.rows * task.groups * 2 <= scale.begin + scale.info.nbytes


@given(PLANS)
@settings(max_examples=20, deadline=None)
def test_units_read_every_byte_that_is_not_dropped_once(which: tuple[str, str]) -> None:
    plan, checkpoint = plan_of(*which), opened_family(which[0])
    units = make_units(plan, lay_out(plan), checkpoint)
    read: Ranges = defaultdict(list)
    heads: list[tuple[int, int]] = []
    table = next(one for name, one in checkpoint.tensors.items() if name.endswith("embed_tokens.weight"))
    for unit in units:
        for task in unit:
            is_untied = "lm_head" in task.name and task.begin >= table.begin and task.begin < table.end
            (heads if is_untied else read[task.file]).append((task.begin, task.begin + task.nbytes))
    assert tile(heads) in ([], [(table.begin, table.end)])  # of an untied head, which is the embedding once more
    for drop in plan.dropped:
        source = checkpoint.tensors[drop.source.name]
        read[source.file].append((source.begin, source.end))
    (file,) = read
    assert tile(read[file]) == [(0, max(tensor.end for tensor in checkpoint.tensors.values()))]


def test_kept_experts_are_copied_from_where_each_expert_lies(moe: Path, tmp_path: Path) -> None:
    from helpers.dialect_sources import write  # noqa: PLC0415 - torch, for this test only

    checkpoint = Checkpoint.open(write(moe, tmp_path / "source", "per expert"))
    plan = make_plan(checkpoint, load(options={"pack": ["mlp"]}).recipe)
    layout = lay_out(plan)
    name = "model.language_model.layers.1.experts.gate_up_proj"
    tasks = [task for unit in make_units(plan, layout, checkpoint) for task in unit if task.name == name]
    tasks = sorted((task for task in tasks if isinstance(task, CopyTask)), key=lambda task: task.target_begin)
    places = [
        checkpoint.tensors[f"model.language_model.layers.1.experts.{e}.{part}_proj.weight"]
        for e in range(12)
        for part in ("gate", "up")
    ]
    assert [(task.file, task.begin) for task in tasks] == [(place.file, place.begin) for place in places]
