"""Functions that a model calls: a linear, and all experts of a layer, on packed int4 words that stay packed.

    x --by slices--> gate and up --h--> down --y--> top_k_sum --> out            `moe`, 4 or 5 launches
      chosen --align----^----------------^

Nothing waits for the GPU, so a call can be part of a CUDA graph once the same call has been made before. Beside
the weights, `moe` takes 2 t h + 2 top_k t (i + h) bytes in bf16 and as many again for the result, and some for sorting.
Scales are stored [n, groups] and read [groups, n]: the first call puts their memory in that order, in place; the tensor
keeps its shape and values.

Letters: t tokens, k in_features, n out_features, e experts, i intermediate size of one, h hidden size.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton

from g4convert.errors import UsageError
from g4convert.forward.triton.matmul import FENCES, INTERPRETED, matmul
from g4convert.forward.triton.packed import Packed
from g4convert.forward.triton.routing import align, most_blocks, top_k_sum
from g4convert.forward.triton.tiles import Kind, Shape, Tile, tile_for

FEW_PAIRS = 16
"""Up to so many pairs each has a block of its own: two tokens seldom share an expert, and nothing is sorted."""

_CHUNK = 4096
"""Pairs that a program of `align` looks at in one step, at most."""

_MOST_BLOCKS = 65_535

_WGMMA, _WARPS_OF_WGMMA = range(90, 120), 4
"""Compute capabilities at which products of 4 warps read shared memory by themselves: wgmma, and tcgen05 after it."""


@dataclass(frozen=True, slots=True)
class Routing:
    """The rows that a product takes for each expert.

    Args:
        form: `sorted`, `pairs` or `rows`, see `matmul`.
        count: pairs; rows where there is one expert.
        number: number of experts.
        blocks: programs along the pairs.
        pairs: see `matmul`.
        experts: see `matmul`.
    """

    form: str
    count: int
    number: int
    blocks: int
    pairs: torch.Tensor | None = None
    experts: torch.Tensor | None = None


def linear(
    x: torch.Tensor, weight: Packed, bias: torch.Tensor | None = None, *, tile: Tile | None = None
) -> torch.Tensor:
    """Multiply by a packed weight.

    Args:
        x: [..., k], bfloat16, float16 or float32.
        weight: [n, k].
        bias: [n], or None.
        tile: cut of the product; None for the table's.

    Returns:
        [..., n], in the dtype of `x`.

    Raises:
        UsageError: tensors are not on one GPU.
    """
    _check(x, weight)
    rows = x.reshape(-1, weight.k)
    out = x.new_empty(len(rows), weight.n)
    if len(rows):
        tile = tile or _tile("linear", rows, weight, weight.n, experts=1, pairs=len(rows))
        routing = Routing("rows", len(rows), 1, triton.cdiv(len(rows), tile.block_m))
        product(by_slices(rows), weight, out, routing, tile)
    out = out.view(*x.shape[:-1], weight.n)
    return out if bias is None else out + bias.to(out.dtype)


def moe(
    x: torch.Tensor,
    chosen: torch.Tensor,
    share: torch.Tensor,
    gate_up: Packed,
    down: Packed,
    *,
    tiles: tuple[Tile, Tile] | None = None,
) -> torch.Tensor:
    """Send each token through its experts: down(gelu_tanh(x gate^T) * (x up^T)), summed by share.

    Args:
        x: [t, h], bfloat16, float16 or float32.
        chosen: integers [t, top_k]; one that is no expert's adds nothing.
        share: floats [t, top_k].
        gate_up: [e, 2i, h], of each expert the gate's rows, then the up's.
        down: [e, h, i].
        tiles: cuts of the two products, with one block_m; None for the table's.

    Returns:
        [t, h], in the dtype of `x`.

    Raises:
        UsageError: tensors are not on one GPU.
    """
    _check(x, gate_up, down)
    (t, h), top_k, (e, i) = x.shape, chosen.shape[1], (len(down.words), down.k)
    out = torch.empty_like(x)
    if not t:
        return out
    first, second = tiles or (
        _tile("gate_up", x, gate_up, i, experts=e, pairs=t * top_k),
        _tile("down", x, down, h, experts=e, pairs=t * top_k),
    )
    routing = route(chosen, e, first.block_m)
    again = routing if first.block_m == second.block_m else route(chosen, e, second.block_m)
    act, y = x.new_empty(t * top_k, i), x.new_empty(t * top_k, h)
    product(by_slices(x), gate_up, act, routing, first, top_k=top_k, gated=True)
    product(act, down, y, again, second, share=share.contiguous())
    block = 1024
    with _device_context(x):
        top_k_sum[(t, triton.cdiv(h, block))](
            y, chosen.contiguous(), out, h, e, top_k=top_k, block=block, interpreted=INTERPRETED, enable_fp_fusion=True
        )
    return out


def route(chosen: torch.Tensor, number: int, block_m: int) -> Routing:
    """Sort pairs by expert, or find that there are too few to sort.

    Args:
        chosen: integers [t, top_k].
        number: number of experts.
        block_m: pairs of a block.
    """
    chosen = chosen.contiguous()
    count = chosen.numel()
    if count <= FEW_PAIRS:
        return Routing("pairs", count, number, count, chosen)
    capacity = most_blocks(count, number, block_m)
    pairs = torch.empty(capacity, block_m, dtype=torch.int32, device=chosen.device)
    experts = torch.empty(capacity, dtype=torch.int32, device=chosen.device)
    with _device_context(chosen):
        align[(number,)](
            chosen,
            pairs,
            experts,
            count,
            capacity,
            number=number,
            bins=triton.next_power_of_2(number + 1),
            block_m=block_m,
            chunk=min(_CHUNK, triton.next_power_of_2(count)),
            num_warps=4 if count <= _CHUNK // 4 else 8,
            enable_fp_fusion=True,
        )
    return Routing("sorted", count, number, capacity, pairs, experts)


def by_slices(x: torch.Tensor) -> torch.Tensor:
    """Return rows [t, k] with feature 4j + i moved to column i * k/4 + j."""
    return x.reshape(len(x), -1, 4).transpose(1, 2).reshape(len(x), -1)


def product(
    x: torch.Tensor,
    weight: Packed,
    out: torch.Tensor,
    routing: Routing,
    tile: Tile,
    *,
    share: torch.Tensor | None = None,
    top_k: int = 1,
    gated: bool = False,
) -> None:
    """Launch `matmul`; its docstring has the shapes.

    Args:
        x: by slices.
        weight: weight of one expert or of all.
        out: [count, n].
        routing: rows of each expert, with the block_m of `tile`.
        tile: cut of the product.
        share: share of each pair, or None.
        top_k: rows of `routing` that share a row of `x`.
        gated: whether the rows of `weight` are gate's and up's.

    Raises:
        UsageError: more blocks than CUDA has in the second dimension of a grid.
    """
    n = out.shape[1]
    tile = tile.within(n)
    if routing.blocks > _MOST_BLOCKS:
        raise UsageError(f"{routing.count} rows in blocks of {tile.block_m}: a GPU takes {_MOST_BLOCKS} blocks at once")
    with _device_context(x):
        matmul[(triton.cdiv(n, tile.block_n), routing.blocks)](
            x,
            weight.halfwords,
            weight.by_groups(),
            out,
            routing.pairs,
            routing.experts,
            share,
            n,
            weight.k // 4,
            weight.groups,
            routing.count,
            top_k,
            routing.number,
            **constants(tile, k=weight.k, groups=weight.groups, gated=gated, capability=_capability(x.device)),
            route=routing.form,
            gated=gated,
            interpreted=INTERPRETED,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )


def constants(tile: Tile, *, k: int, groups: int, gated: bool, capability: int) -> dict[str, Any]:
    """Return the compile-time arguments of `matmul` that follow from a tile, a weight and a GPU."""
    block_h = tile.block_k // 4
    unfenced = capability in _WGMMA and tile.num_warps >= _WARPS_OF_WGMMA and not (FENCES or INTERPRETED)
    return {
        "group_h": 0 if groups == 1 else k // groups // 4,
        "even": k // 4 % block_h == 0,
        "block_m": tile.block_m,
        "block_n": tile.block_n,
        "block_h": block_h,
        "fence": tile.block_n * (2 if gated else 1) * block_h // (32 * tile.num_warps) if unfenced else 0,
    }


def _check(x: torch.Tensor, *weights: Packed) -> None:
    places = {x.device, *(part.device for weight in weights for part in (weight.words, weight.scale))}
    if len(places) > 1 or (x.device.type != "cuda" and not INTERPRETED):
        raise UsageError(f"tensors on {', '.join(map(str, places))}: the packed kernels run on one GPU")


def _tile(kind: Kind, x: torch.Tensor, weight: Packed, n: int, *, experts: int, pairs: int) -> Tile:
    rows = triton.next_power_of_2(triton.cdiv(pairs, experts))
    shape = Shape(kind, experts, n, weight.k, weight.k // weight.groups, rows, x.dtype is torch.float32)
    return tile_for(shape, _capability(x.device))


@cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # the interpreter takes any
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def _device_context(x: torch.Tensor) -> Any:  # noqa: ANN401 - two kinds of context
    """Return a context that makes the device of `x` current, as Triton launches on that."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
