"""Which products a model has, and which tiles can be good for one: by arithmetic, without a GPU and without Triton."""

import math
from collections.abc import Sequence
from itertools import product as every

from g4convert.kernels.tiles import Shape, Tile

__all__ = ["CANDIDATES", "TOKENS", "candidates_for", "layer_shapes", "linear_shapes"]

TOKENS = tuple(1 << i for i in range(13))
"""Of a forward: 1 to 4096."""

CANDIDATES = tuple(
    Tile(m, n, k, warps, stages)
    for m, (n, warps), k, stages in every(
        (16, 32, 64, 128), ((32, 2), (64, 4), (128, 4), (128, 8)), (128, 256), (2, 3, 4)
    )
)
"""Tiles that are tried. Each warp has 16 or 32 rows of the weight, so no code is unpacked twice."""

_MOST_SUMS = 128


def layer_shapes(h: int, i: int, e: int, top_k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """The two products of a layer of experts.

    Args:
        h: hidden size.
        i: intermediate size of an expert.
        e: experts.
        top_k: experts of a token.
        group: weights of a scale.
        tokens: of a forward.
    """
    rows = dict.fromkeys(_bucket(-(-t * top_k // e)) for t in tokens)
    pairs = ((Shape("gate_up", e, i, h, min(group, h), r), Shape("down", e, h, i, min(group, i), r)) for r in rows)
    return [shape for pair in pairs for shape in pair]


def linear_shapes(n: int, k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """The products of a linear [n, k], `group` weights sharing a scale."""
    return [Shape("linear", 1, n, k, min(group, k), _bucket(t)) for t in tokens]


def _bucket(rows: int) -> int:
    """The power of two under which a table has so many rows."""
    return 1 << (rows - 1).bit_length()


def candidates_for(shape: Shape, candidates: Sequence[Tile], shared: float = math.inf) -> list[Tile]:
    """Tiles that can be good for a shape.

    Left out are those that

    - are wider than the weight, or have steps of more than twice its rows;
    - have more than 32 rows and more than twice what an expert has, or fewer than 32 and an eighth of what it has;
    - have more sums than registers, or on two warps more than 32 rows: twice the instructions a weight (`aot`);
    - want more memory for the steps on their way than a program may have;
    - in float32, which is there to compare with, are not flat: they spill.

    Args:
        shape: of the product.
        candidates: all of them.
        shared: bytes that a program may have.
    """
    return [tile for tile in candidates if _can_be_good(shape, tile) and _bytes_on_their_way(shape, tile) <= shared]


def _can_be_good(shape: Shape, tile: Tile) -> bool:
    halves = 2 if shape.kind == "gate_up" else 1
    return (
        tile.block_n <= shape.n
        and tile.block_k <= 2 * shape.k
        and min(32, shape.rows // 8) <= tile.block_m <= max(32, 2 * shape.rows)
        and halves * tile.block_m * tile.block_n <= _MOST_SUMS * 32 * tile.num_warps
        and (tile.block_m <= 32 or tile.num_warps > 2)
        and (not shape.wide or (tile.block_m == 16 and tile.block_k == 128))
    )


def _bytes_on_their_way(shape: Shape, tile: Tile) -> int:
    """At least so much shared memory is needed: words and rows of all steps but the one that is computed."""
    words = tile.block_n * tile.block_k // 2 * (2 if shape.kind == "gate_up" else 1)
    rows = tile.block_m * tile.block_k * (4 if shape.wide else 2)
    return (tile.num_stages - 1) * (words + rows)
