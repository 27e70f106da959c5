"""Functions for a process of their own, where Triton interprets kernels on CPU tensors.

Triton reads TRITON_INTERPRET when it is imported, and other tests compile: so a test sends a function of this module
to `Interpreter`, by name. This process imports no kernel.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from g4convert.forward.triton.packed import Packed

BITS = 4 * torch.arange(8)


@dataclass(frozen=True)
class Case:
    """A layer of experts, or a linear from h to i.

    Args:
        t: tokens.
        h: hidden size.
        i: intermediate size of an expert.
        group: weights of a scale; 0 for one a row.
        dtype: dtype of activations.
        e: experts.
        idle: experts that no token is sent to, the first and the last ones.
        top_k: experts of a token.
        block: m, n and k of a tile.
        scale: dtype of scales.
    """

    t: int
    h: int
    i: int
    group: int = 32
    dtype: str = "float32"
    e: int = 6
    idle: int = 2
    top_k: int = 2
    block: tuple[int, int, int] = (16, 64, 256)
    scale: str = "bfloat16"


class Interpreter:
    """A process in which Triton interprets."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin)

    def __call__(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - of any function
        """Return the result of a function of this module there."""
        return self.pool.submit(function, *arguments).result()


def _begin() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0", DeprecationWarning)  # Triton 3.6 does
    torch.use_deterministic_algorithms(mode=True)  # new memory is then filled with NaN
    assert torch.zeros(1).new_empty(1).isnan().all()


def packed(codes: torch.Tensor, scale: torch.Tensor) -> Packed:
    """Pack codes in -8..7, [..., n, k], as compressed-tensors does."""
    from g4convert.forward.triton.packed import Packed  # noqa: PLC0415 - not before `_begin`

    words = ((codes.to(torch.int64) + 8).unflatten(-1, (-1, 8)) << BITS).sum(-1)
    return Packed(words.to(torch.int32), scale)


def random_weight(case: Case, n: int, k: int, *lead: int) -> tuple[Packed, torch.Tensor]:
    """A random weight, and the same in float64; scales have either sign, rows of all magnitudes."""
    codes = torch.randint(-8, 8, (*lead, n, k))
    groups = k // (case.group or k)
    scale = (torch.randn(*lead, n, groups) * k**-0.5 / 4).to(getattr(torch, case.scale))
    used = scale.to(getattr(torch, case.dtype)).double().repeat_interleave(k // groups, -1)
    return packed(codes, scale), (codes * used).to(getattr(torch, case.dtype)).double()


def random_routing(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts of each token in any order, without the idle ones, and their shares."""
    first = case.idle // 2
    busy = case.e - case.idle
    chosen = torch.stack([first + torch.randperm(busy)[: case.top_k] for _ in range(case.t)])
    return chosen, torch.rand(case.t, case.top_k) + 0.1


def expected(  # noqa: PLR0913, PLR0917 - a layer has so many parts
    x: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str
) -> torch.Tensor:
    """The layer in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, row in enumerate(x.double()):
        for expert, weight in zip(chosen[token].tolist(), share[token].double(), strict=True):
            gate, up = (gate_up[expert] @ row).chunk(2)
            out[token] += weight * (down[expert] @ (_act(gate, act) * up))
    return out


def _act(x: torch.Tensor, name: str) -> torch.Tensor:
    match name:
        case "silu":
            return functional.silu(x)
        case "gelu":
            return functional.gelu(x)
        case _:
            return functional.gelu(x, approximate="tanh")


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the size of what is wanted, over all elements; NaN if any is."""
    return float((found.double() - wanted).norm() / wanted.norm())


def _tile(case: Case) -> Any:  # noqa: ANN401 - imported there
    from g4convert.forward.triton.tiles import Tile  # noqa: PLC0415 - not before `_begin`

    return Tile(*case.block, num_warps=4, num_stages=2)


def moe_error(case: Case, seed: int) -> float:
    """The kernels against float64."""
    from g4convert.forward.triton.fused import moe  # noqa: PLC0415 - not before `_begin`

    torch.manual_seed(seed)
    (gate_up, up_dense), (down, down_dense) = layer(case)
    x = torch.randn(case.t, case.h).to(getattr(torch, case.dtype))
    chosen, share = random_routing(case)
    out = moe(x, chosen, share, gate_up, down, tiles=(_tile(case), _tile(case)))
    assert out.dtype is x.dtype
    return error_of(out, expected(x, chosen, share, up_dense, down_dense, "tanh"))


def layer(case: Case) -> tuple[tuple[Packed, torch.Tensor], tuple[Packed, torch.Tensor]]:
    """Gate and up, and down, of random experts."""
    return random_weight(case, 2 * case.i, case.h, case.e), random_weight(case, case.h, case.i, case.e)


def linear_error(case: Case, seed: int, *, bias: bool = False) -> float:
    """A linear against float64."""
    from g4convert.forward.triton.fused import linear  # noqa: PLC0415 - not before `_begin`

    torch.manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    weight, dense = random_weight(case, case.i, case.h)
    x, added = torch.randn(1, case.t, case.h).to(dtype), torch.randn(case.i).to(dtype)
    out = linear(x, weight, added if bias else None, tile=_tile(case))
    return error_of(out, x.double() @ dense.T + (added.double() if bias else 0))


def damaged_error(damage: str, seed: int) -> float:
    """The kernels on something wrong against float64 on what is right."""
    from g4convert.forward.triton.fused import moe  # noqa: PLC0415 - not before `_begin`
    from g4convert.forward.triton.packed import Packed  # noqa: PLC0415 - the same

    torch.manual_seed(seed)
    case = Case(t=5, h=128, i=64, idle=0, block=(16, 64, 512))
    (gate_up, up_dense), (down, down_dense) = layer(case)
    x, (chosen, right), act = torch.randn(case.t, case.h), random_routing(case), "tanh"
    words, scale, share = gate_up.words, gate_up.scale, right
    match damage:
        case "none":
            pass
        case "nibble order":
            nibbles = (words.to(torch.int64).unsqueeze(-1) >> BITS) & 15
            gate_up = packed(nibbles.flip(-1).flatten(-2) - 8, scale)
        case "gate and up swapped":
            gate_up = Packed(words.roll(case.i, 1), scale.roll(case.i, 1))
        case "no offset":
            gate_up = Packed(words ^ 0x88888888 - (1 << 32), scale)
        case "scales one group on":
            gate_up = Packed(words, scale.roll(1, -1))
        case "experts permuted":
            down = Packed(down.words.roll(1, 0), down.scale.roll(1, 0))
        case "shares permuted":
            share = share.flip(1)
        case _:
            act = damage
    out = moe(x, chosen, share, gate_up, down, tiles=(_tile(case), _tile(case)))
    return error_of(out, expected(x, chosen, right, up_dense, down_dense, act))


def renumbered() -> bool:
    """Return True if a layer gives the same bits with its experts in another order, ids that name none among them."""
    from g4convert.forward.triton.fused import moe  # noqa: PLC0415 - not before `_begin`
    from g4convert.forward.triton.packed import Packed  # noqa: PLC0415 - the same

    case = Case(t=11, h=64, i=64, dtype="bfloat16")
    (gate_up, _), (down, _) = layer(case)
    x, (chosen, share) = torch.randn(case.t, case.h).bfloat16(), random_routing(case)
    order = torch.randperm(case.e)
    moved = [Packed(weight.words[order], weight.scale[order]) for weight in (gate_up, down)]
    chosen[3, 0] = case.e
    other = torch.cat((order.argsort(), torch.tensor([case.e])))[chosen]
    return torch.equal(moe(x, chosen, share, gate_up, down), moe(x, other, share, *moved))


def nobody_chosen(t: int) -> bool:
    """Return True if tokens whose ids name no expert get zeros."""
    from g4convert.forward.triton.fused import moe  # noqa: PLC0415 - not before `_begin`

    case = Case(t=t, h=64, i=64)
    (gate_up, _), (down, _) = layer(case)
    chosen = torch.tensor([[case.e, -1]]).expand(t, 2)
    return bool((moe(torch.randn(t, case.h), chosen, torch.ones(t, 2), gate_up, down) == 0).all())


def aligned(chosen: torch.Tensor, number: int, block_m: int, fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of `align` over memory that holds something."""
    import triton  # noqa: PLC0415 - not before `_begin`

    from g4convert.forward.triton.routing import align, most_blocks  # noqa: PLC0415 - the same

    capacity = most_blocks(chosen.numel(), number, block_m)
    pairs = torch.full((capacity, block_m), fill, dtype=torch.int32)
    experts = torch.full((capacity,), fill, dtype=torch.int32)
    bins = triton.next_power_of_2(number + 1)
    align[(number,)](
        chosen, pairs, experts, chosen.numel(), capacity, number=number, bins=bins, block_m=block_m, chunk=16
    )
    return pairs, experts


def scale_memory(group: int) -> tuple[bool, tuple[int, ...]]:
    """Return True if scales keep their values when a product orders their memory, and the strides then."""
    from g4convert.forward.triton.fused import linear  # noqa: PLC0415 - not before `_begin`

    case = Case(t=1, h=256, i=32, group=group)
    weight, _ = random_weight(case, case.i, case.h)
    before, memory = weight.scale.clone(), weight.scale
    with torch.inference_mode():
        linear(torch.randn(1, case.h), weight)
    return torch.equal(memory, before), memory.stride()


def model_error(directory: Path) -> float:
    """Logits of a packed checkpoint, all of it through the kernels, against eager ones on dequantized weights."""
    from g4convert.forward import experts, modules  # noqa: PLC0415 - not before `_begin`
    from g4convert.forward.load import load  # noqa: PLC0415 - the same
    from g4convert.forward.triton import fused, tiles  # noqa: PLC0415 - the same

    coarse = tiles.Tile(16, 128, 512, num_warps=4, num_stages=2)  # the fewer programs, the less to interpret
    fused.tile_for = lambda shape, _: coarse.within(shape.n)
    experts.EXPERTS["cpu"], modules.LINEARS["cpu"] = experts.fused_experts, modules.fused_linear
    torch.use_deterministic_algorithms(mode=False)  # transformers is not held to it
    ids = torch.randint(8, 64, (1, 12))
    with torch.inference_mode():
        eager = load(directory, dtype="float32", packed=False)
        wanted = eager(input_ids=ids).logits.double()
        return error_of(load(directory, dtype="float32")(input_ids=ids).logits, wanted)
