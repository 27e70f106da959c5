"""Products of a model, and tiles that can be good for one, by arithmetic: without a GPU and without Triton."""

import math
from collections.abc import Sequence
from itertools import product as every

from g4convert.forward.triton.tiles import Shape, Tile

TOKENS = tuple(1 << i for i in range(13))
"""Numbers of tokens of a forward: 1 to 4096."""

CANDIDATES = tuple(
    Tile(m, n, k, warps, stages)
    for m, n, k, warps, stages in every(
        (8, 16, 32, 64, 128), (16, 32, 64, 128, 256), (64, 128, 256), (2, 4, 8), (2, 3, 4)
    )
)
"""Tiles that `candidates_for` chooses from."""

_FEW, _REGISTERS = 32, 150


def layer_shapes(h: int, i: int, e: int, top_k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """Return the two products of a layer of experts.

    Args:
        h: hidden size.
        i: intermediate size of an expert.
        e: experts.
        top_k: experts of a token.
        group: weights of a scale.
        tokens: number of tokens of a forward.
    """
    rows = dict.fromkeys(_bucket(-(-t * top_k // e)) for t in tokens)
    pairs = ((Shape("gate_up", e, i, h, min(group, h), r), Shape("down", e, h, i, min(group, i), r)) for r in rows)
    return [shape for pair in pairs for shape in pair]


def linear_shapes(n: int, k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """Return the products of a linear [n, k], `group` weights sharing a scale."""
    return [Shape("linear", 1, n, k, min(group, k), _bucket(t)) for t in tokens]


def _bucket(rows: int) -> int:
    """Return the power of two under which a table has so many rows."""
    return 1 << (rows - 1).bit_length()


def candidates_for(shape: Shape, candidates: Sequence[Tile], shared: float = math.inf) -> list[Tile]:
    """Return tiles that can be good for a shape.

    Left out are those that

    - are wider than the weight, or have steps of more than twice its rows;
    - give a warp other than 16, 32 or 64 rows of the weight, gate and up counted: fewer, and codes are unpacked twice;
    - have more than 16 rows and more than twice what an expert has, or fewer than 32 and a quarter of what it has;
    - have sums and words for more than 150 registers, or on two warps more than 32 rows: both spill (`kernel_aot`);
    - have up to 32 rows, so that memory is the limit, and steps of 64 (32 bytes of a row), no copies on their way
      during a step (two stages), or few programs (8 warps, or 64 rows for a warp);
    - want more memory for the steps on their way than a program may have;
    - in float32, which is there to compare with, are not flat: they spill.

    Args:
        shape: shape of the product.
        candidates: all of them.
        shared: bytes that a program may have.
    """
    return [tile for tile in candidates if _can_be_good(shape, tile) and _bytes_on_their_way(shape, tile) <= shared]


def _can_be_good(shape: Shape, tile: Tile) -> bool:
    rows = tile.block_n * (2 if shape.kind == "gate_up" else 1)
    of_a_warp = rows // tile.num_warps
    if tile.block_m <= _FEW:
        suits = tile.block_k > 64 and tile.num_stages > 2 and tile.num_warps < 8 and of_a_warp in {16, 32}
    else:
        suits = tile.num_warps > 2 and of_a_warp in {16, 32, 64}
    return (
        suits
        and tile.block_n <= shape.n
        and tile.block_k <= 2 * shape.k
        and min(_FEW, shape.rows // 4) <= tile.block_m <= max(16, 2 * shape.rows)
        and of_a_warp * (tile.block_m + tile.block_k // 8) <= _REGISTERS * 32
        and (not shape.wide or (tile.block_m == 16 and tile.block_k == 128))
    )


def _bytes_on_their_way(shape: Shape, tile: Tile) -> int:
    """Return the least shared memory, in bytes: words and rows of all steps but the one that is computed."""
    words = tile.block_n * tile.block_k // 2 * (2 if shape.kind == "gate_up" else 1)
    rows = tile.block_m * tile.block_k * (4 if shape.wide else 2)
    return (tile.num_stages - 1) * (words + rows)
