"""Tiles of 26B-A4B measured on the card, for a table of its own and for the one that ships."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import torch
from rivals import GROUP

from g4convert.forward.triton.autotune import Gpu, TileChoice, autotune, search
from g4convert.forward.triton.bench import LayerBench
from g4convert.forward.triton.candidates import layer_shapes, linear_shapes
from g4convert.forward.triton.tiles import Kind, Shape, Tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gpu_layers import Machine, Results, Sizes

_ENOUGH = 45.0
"""Seconds that the next layer or linear may take; less is left undone."""

_FEW = (Tile(16, 32, 64, 4, 2), Tile(16, 16, 64, 4, 2))
"""Tiles that a rehearsal tries."""


def tuning(path: Path, machine: Machine, sizes: Sizes, _: Results) -> Iterator[str]:
    """A line for each shape, and the rows of `tiles.json` that follow; the table itself is written to `path`."""
    yield "| product | rows | tile now | us | best tile | us | now / best |"
    yield "|---|---:|---|---:|---|---:|---:|"
    found: dict[Shape, TileChoice] = {}
    layers = [layer_shapes(sizes.h, sizes.i, sizes.e, sizes.top_k, GROUP, sizes.tuned)]
    layers += [linear_shapes(n, k, GROUP, sizes.tuned) for n, k in sizes.linears]
    for number, shapes in enumerate(layers):
        if machine.left < _ENOUGH:
            yield from ("", f"No time left for {len(layers) - number} of {len(layers)}.")
            break
        measured = _measured(machine, shapes, path)
        found |= measured
        yield from (_line(shape, choice) for shape, choice in measured.items())
    for kind in ("gate_up", "down", "linear"):
        if rows := shipped_rows(kind, found):
            yield from ("", f"`{kind}` of `tiles.json`:", "", *(f"    {json.dumps(row)}" for row in rows))


def _measured(machine: Machine, shapes: Sequence[Shape], path: Path) -> dict[Shape, TileChoice]:
    if machine.device != "cpu":
        return autotune(shapes, path)

    def clock(runs: Sequence[Callable[[], object]], repeats: int) -> float:
        return machine.seconds(runs, repeats)

    make = partial(LayerBench, device=torch.device("cpu"), clock=clock)
    return search(shapes, path, Gpu(machine.card, machine.capability), make, candidates=_FEW)


def _line(shape: Shape, choice: TileChoice) -> str:
    return (
        f"| {shape.kind} {shape.n} x {shape.k} | {shape.rows} | {_cut(choice.before)} "
        f"| {choice.before_seconds * 1e6:.1f} | {_cut(choice.tile)} | {choice.seconds * 1e6:.1f} "
        f"| {choice.before_seconds / choice.seconds:.2f} |"
    )


def _cut(tile: Tile) -> str:
    return f"{tile.block_m}x{tile.block_n}x{tile.block_k} w{tile.num_warps} s{tile.num_stages}"


def shipped_rows(kind: Kind, found: dict[Shape, TileChoice]) -> list[dict[str, int | None]]:
    """Rows of the table that ships, for one kind of product: of each number of rows the tile that loses least.

    Where several shapes have a number of rows it is the one with the least sum of times, each divided by the best of
    its shape. Both products of a layer have block_m as it was chosen for the two together.
    """
    by_rows: dict[int, list[TileChoice]] = {}
    for shape, choice in found.items():
        if shape.kind == kind:
            by_rows.setdefault(shape.rows, []).append(choice)
    rows: list[dict[str, int | None]] = []
    last = None
    for number, choices in sorted(by_rows.items()):
        tile = choices[0].tile if len(choices) == 1 else _least_loss(choices)
        if tile == last:
            rows[-1]["rows"] = number
        else:
            rows.append({"rows": number, **{name: getattr(tile, name) for name in Tile.__slots__}})
        last = tile
    if rows:
        rows[-1]["rows"] = None
    return rows


def _least_loss(choices: Sequence[TileChoice]) -> Tile:
    """Return the tile that loses least, of those that all shapes have run."""
    common = set.intersection(*(set(choice.times) for choice in choices))
    losses = {
        tile: sum(choice.times[tile] / min(choice.times.values()) for choice in choices)
        for tile in sorted(common, key=_cut)
    }
    return min(losses, key=losses.__getitem__)
