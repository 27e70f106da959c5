"""Tiles of a product: a table for each architecture and size, and a user's own before it.

`tiles.json` ships with the package: for each architecture and kernel, tiles by the mean number of rows of an expert,
smallest first. It was made without a GPU, from the compiler's counts (`tools/kernel_aot.py`): safe, not the fastest.
`autotune.autotune` measures on a GPU and writes a table of exact shapes; it is used where the environment variable
G4CONVERT_TILES names it. Nothing is measured while a model runs.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

from g4convert.errors import UsageError
from g4convert.whole_files import write_whole

Kind: TypeAlias = Literal["gate_up", "down", "linear"]

VARIABLE = "G4CONVERT_TILES"
"""Names the file of a table that `autotune` wrote."""

ARCHITECTURES = (80, 89, 90, 100, 120)
"""Compute capabilities that have rows of their own; others use the nearest one below."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The cut of one product.

    Args:
        block_m: rows of one expert in a program.
        block_n: features of a program, of gate and of up each.
        block_k: in_features of a step.
        num_warps: warps of a program.
        num_stages: steps whose weights are on their way.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def within(self, n: int) -> "Tile":
        """Return the same tile with no more features than there are."""
        block_n = self.block_n
        while block_n > n:
            block_n //= 2
        return Tile(self.block_m, block_n, self.block_k, self.num_warps, self.num_stages)


@dataclass(frozen=True, slots=True)
class Shape:
    """One product that a table has a tile for.

    Args:
        kind: kind of product, one of three.
        experts: 1 for a linear.
        n: features of the result; half the rows of gate and up.
        k: in_features.
        group: weights of a scale; k where a row has one.
        rows: mean number of rows of an expert, rounded up to a power of two.
        wide: whether activations are float32.
    """

    kind: Kind
    experts: int
    n: int
    k: int
    group: int
    rows: int
    wide: bool = False


def architecture(capability: int) -> int:
    """Return the architecture whose rows a GPU uses, at most its own; the first for older ones."""
    return max((known for known in ARCHITECTURES if known <= capability), default=ARCHITECTURES[0])


def tile_for(shape: Shape, capability: int) -> Tile:
    """Return the tile of a product.

    Args:
        shape: shape of the product.
        capability: compute capability of the GPU, 90 for 9.0.

    Raises:
        UsageError: G4CONVERT_TILES names a file that is not a table.
    """
    own_table = os.environ.get(VARIABLE)
    if own_table and (own_tile := load_table(Path(own_table), capability).get(shape)):
        return own_tile
    rows = _shipped()["fp32" if shape.wide else f"sm_{architecture(capability)}"][shape.kind]
    row = next(row for row in rows if row["rows"] is None or shape.rows <= row["rows"])
    return _tile(row).within(shape.n)


@cache
def _shipped() -> Mapping[str, Mapping[str, list[dict[str, Any]]]]:
    table: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(
        files("g4convert.forward.triton").joinpath("tiles.json").read_text()
    )
    return table


def shipped_tiles(name: str) -> list[tuple[Kind, Tile]]:
    """Return every tile of an architecture, `sm_90`, or of `fp32`, once."""
    table = _shipped()[name]
    kinds: tuple[Kind, ...] = ("gate_up", "down", "linear")
    return list(dict.fromkeys((kind, _tile(row)) for kind in kinds for row in table[kind]))


def _tile(row: Mapping[str, Any]) -> Tile:
    return Tile(*(int(row[name]) for name in Tile.__slots__))


@cache
def load_table(path: Path, capability: int) -> Mapping[Shape, Tile]:
    """Read a user's table; empty where it was measured on another architecture.

    Raises:
        UsageError: the file cannot be read, or is not a table.
    """
    try:
        table = json.loads(path.read_text())
        if table["capability"] != capability:
            return {}
        return {Shape(**{name: row[name] for name in Shape.__slots__}): _tile(row) for row in table["tiles"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not a table of tiles: {error}", hint=f"unset {VARIABLE}, or measure again"
        ) from error


def save_table(path: Path, capability: int, tiles: Mapping[Shape, Tile], made_with: Mapping[str, str]) -> None:
    """Write what was measured."""
    rows = [{**asdict(shape), **asdict(tile)} for shape, tile in tiles.items()]
    write_whole(path, json.dumps({"capability": capability, **made_with, "tiles": rows}, indent=1) + "\n")
