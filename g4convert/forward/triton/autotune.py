"""Measures how products are best cut on a GPU, and writes a table that stays with the user.

Tiles that cannot be good are left out by arithmetic (`candidates`); the rest are compiled, checked and timed by
`bench.LayerBench`, first shortly, then the best ones with care. Nothing else in g4convert measures: models use the
table that ships, or this one where the variable G4CONVERT_TILES names it.

The table is written after each layer of experts or linear, whole or not at all. What the file already has from the
same card and versions is kept and not measured again: so an interrupted run goes on where it stopped, and one table
serves several models.

26B-A4B on an H100 with 16 cores, by arithmetic: 812 variants of `matmul`, 0.6 s of a core each (measured), are 30 s of
all cores. 8,010 tiles, at 14 ms on average for a graph that is made and played four times, are 112 s, and the best
ones again 40 s. So three minutes, or six with slower or fewer cores.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from pathlib import Path

import torch
import triton

from g4convert import __version__
from g4convert.errors import EnvironmentFault
from g4convert.forward.triton.bench import LayerBench
from g4convert.forward.triton.candidates import CANDIDATES, candidates_for
from g4convert.forward.triton.packed import check_device_and_dtype
from g4convert.forward.triton.tiles import Shape, Tile, load_table, save_table, tile_for
from g4convert.progress import Progress

_QUICK, _CAREFUL = 3, 20
_HEIGHTS, _OF_EACH = 2, 2


@dataclass(frozen=True, slots=True)
class TileChoice:
    """The tile found for a shape.

    Args:
        tile: the fastest.
        seconds: seconds of one product with this tile.
        before: the tile that the table had for it.
        before_seconds: seconds of one product with the tile before; infinite where it does not run.
        times: seconds of every tile that was tried, shortly measured.
    """

    tile: Tile
    seconds: float
    before: Tile
    before_seconds: float
    times: dict[Tile, float]


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that is measured.

    Args:
        name: for a reader of the table; times of another card say nothing.
        capability: 90 for 9.0.
        shared: bytes of shared memory that a program may have.
    """

    name: str
    capability: int
    shared: float = math.inf


def autotune(
    shapes: Iterable[Shape],
    path: Path,
    *,
    device: int = 0,
    progress: Progress | None = None,
) -> dict[Shape, TileChoice]:
    """Measure candidates on a GPU, and write the best; see `search`.

    Args:
        shapes: shapes from `candidates.layer_shapes` and `linear_shapes`.
        path: path of the table that is written.
        device: number of the GPU.
        progress: told of tiles that are done.

    Returns:
        What was found for each shape that was measured.

    Raises:
        EnvironmentFault: no such GPU, or no candidate runs on it.
        UsageError: the file is there and not a table.
    """
    count, place = torch.cuda.device_count(), torch.device("cuda", device)
    if count <= device:
        raise EnvironmentFault(f"autotune: {count} CUDA devices found", hint="it needs a GPU")
    check_device_and_dtype(place, torch.bfloat16)
    shared = float(getattr(torch.cuda.get_device_properties(place), "shared_memory_per_block_optin", math.inf))
    major, minor = torch.cuda.get_device_capability(device)
    card = Gpu(torch.cuda.get_device_name(device), major * 10 + minor, shared)
    with torch.cuda.device(place):
        return search(shapes, path, card, partial(LayerBench, device=place), progress=progress)


def search(
    shapes: Iterable[Shape],
    path: Path,
    card: Gpu,
    make: Callable[[Sequence[Shape]], LayerBench],
    *,
    candidates: Sequence[Tile] = CANDIDATES,
    progress: Progress | None = None,
) -> dict[Shape, TileChoice]:
    """Time candidates on every shape that the table does not have, and write the best.

    Both products of a layer take the same block_m, or its pairs would be sorted twice: the one with the least sum.

    Args:
        shapes: see `autotune`.
        path: shapes from `candidates.layer_shapes` and `linear_shapes`.
        card: card that `make` times on.
        make: a timer for the products of one layer, or one linear.
        candidates: tiles that are tried where they can be good.
        progress: see `autotune`.

    Returns:
        What was found for each shape that was measured.

    Raises:
        EnvironmentFault: no candidate runs.
        UsageError: the file is there and not a table.
    """
    versions = {"torch": torch.__version__, "triton": triton.__version__, "g4convert": __version__}
    made_with = {"card": card.name, **versions}
    table = _read_own_entries(path, card.capability, made_with)
    before = {shape: tile_for(shape, card.capability) for shape in shapes if shape not in table}
    tried = {
        shape: list(dict.fromkeys((*candidates_for(shape, candidates, card.shared), tile)))
        for shape, tile in before.items()
    }
    choices: dict[Shape, TileChoice] = {}
    display = progress or Progress()
    display.step("measuring", sum(map(len, tried.values())), "tiles")
    for layer in _layers(before):
        timer = make(layer)
        for message in timer.try_out((shape, tile) for shape in layer for tile in tried[shape]):
            display.tick(0, f"{_name_layer(layer)}: {message}")
        for together in _same_rows(layer):
            choices |= _choose(timer, together, tried, before)
            display.tick(
                sum(len(tried[shape]) for shape in together), f"{_name_layer(layer)}: {together[0].rows} rows timed"
            )
        table |= {shape: choices[shape].tile for shape in layer}
        _write(path, card.capability, table, made_with)
    return choices


def _choose(
    timer: LayerBench, together: Sequence[Shape], tried: Mapping[Shape, Sequence[Tile]], before: Mapping[Shape, Tile]
) -> dict[Shape, TileChoice]:
    """Return the best tiles of products that are cut together: all are timed shortly, the best ones again."""
    quick = [{tile: timer.seconds(shape, tile, _QUICK) for tile in tried[shape]} for shape in together]
    heights = sorted(_sum_times(quick), key=_sum_times(quick).__getitem__)[:_HEIGHTS]
    if not heights:
        raise EnvironmentFault(f"autotune: no candidate runs for {', '.join(map(str, together))}")
    careful = []
    for shape, times in zip(together, quick, strict=True):
        best = [tile for m in heights for tile in nsmallest(_OF_EACH, _of_height(times, m), key=times.__getitem__)]
        again = dict.fromkeys((*best, before[shape]))
        careful.append({tile: timer.seconds(shape, tile, _CAREFUL) for tile in again})
    sums = _sum_times(careful)
    height = min(sums, key=sums.__getitem__)
    choices = {}
    for shape, times, short in zip(together, careful, quick, strict=True):
        tile = min(_of_height(times, height), key=times.__getitem__)
        choices[shape] = TileChoice(tile, times[tile], before[shape], times[before[shape]], short)
    return choices


def _sum_times(seconds: Sequence[Mapping[Tile, float]]) -> dict[int, float]:
    """Return the least time of all products together by block_m, without those at which one does not run."""
    heights = sorted({tile.block_m for times in seconds for tile in times})
    sums = {m: sum(min((t[tile] for tile in _of_height(t, m)), default=math.inf) for t in seconds) for m in heights}
    return {m: total for m, total in sums.items() if total < math.inf}


def _of_height(tiles: Iterable[Tile], block_m: int) -> list[Tile]:
    return [tile for tile in tiles if tile.block_m == block_m]


def _layers(shapes: Iterable[Shape]) -> list[list[Shape]]:
    """Return shapes of the same weights: the products of one layer, or a linear by itself, for all numbers of rows."""
    layers: dict[tuple[object, ...], list[Shape]] = {}
    for shape in shapes:
        sizes = (shape.n, shape.k) if shape.kind == "linear" else tuple(sorted((shape.n, shape.k)))
        group = 0 if shape.group == shape.k else shape.group
        layers.setdefault((shape.kind == "linear", sizes, group, shape.experts, shape.wide), []).append(shape)
    return list(layers.values())


def _same_rows(layer: Sequence[Shape]) -> list[list[Shape]]:
    """Return the shapes of a layer that run together: they are cut together."""
    return [[shape for shape in layer if shape.rows == rows] for rows in dict.fromkeys(shape.rows for shape in layer)]


def _name_layer(layer: Sequence[Shape]) -> str:
    return ", ".join(dict.fromkeys(f"{shape.kind} {shape.n} x {shape.k}" for shape in layer))


def _read_own_entries(path: Path, capability: int, made_with: Mapping[str, str]) -> dict[Shape, Tile]:
    """Return the entries of a table that were made on the same card with the same versions."""
    if not path.exists():
        return {}
    load_table.cache_clear()
    table = dict(load_table(path, capability))
    head = json.loads(path.read_text())
    return table if made_with.items() <= head.items() else {}


def _write(path: Path, capability: int, table: Mapping[Shape, Tile], made_with: Mapping[str, str]) -> None:
    save_table(path, capability, table, made_with)
    load_table.cache_clear()
