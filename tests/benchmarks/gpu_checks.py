"""Every tile that ships for the card, every dtype and group, against float64, over memory full of NaN."""

from __future__ import annotations

import math
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from gpu_layers import Machine, Results, Sizes, make_layer, make_linear
from rivals import GROUP, Layer
from torch.nn import functional

from g4convert.forward.triton import fused, tiles
from g4convert.forward.triton.packed import Packed
from g4convert.forward.triton.timing import dense, in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDS = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
"""Largest relative errors. Float32 sums of 2816 and 704 products in turn are 1.4e-6 off; with TF32 above 1e-4."""

Check: TypeAlias = tuple[str, float, float]
"""Name of a comparison, its relative error and the largest that is right."""


def compared(machine: Machine, sizes: Sizes, _: Results) -> Iterator[str]:
    """Compare everything, and say all that is wrong; one of them ends the program."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # new memory is filled with NaN
    plans = [partial(_tried, plan) for plan in _plans(machine, sizes)]
    every = [check for found in in_threads(plans) for check in found]
    torch.use_deterministic_algorithms(mode=False)
    wrong = [check for check in every if not check[1] <= check[2]]
    if wrong:
        said = (f"WRONG: {name}: relative error {error:.2e}, at most {bound:.0e}" for name, error, bound in wrong)
        sys.exit("\n".join((*said, f"{len(wrong)} of {len(every)} comparisons are wrong")))
    worst = max(error / bound for _, error, bound in every)
    yield f"{len(every)} comparisons with float64, the worst at {worst:.0%} of its bound."


def _tried(plan: partial[list[Check]]) -> list[Check]:
    """Run a comparison; a plan that does not run is wrong, and the others still tell."""
    try:
        return plan()
    except Exception as error:  # noqa: BLE001 - of the compiler, of CUDA
        traceback.print_exc()
        return [(f"{plan.func.__name__}{plan.args[2:]}: {type(error).__name__}", math.nan, 0.0)]


def _plans(machine: Machine, sizes: Sizes) -> Iterator[partial[list[Check]]]:
    """Comparisons that share what is compiled, together: each of these runs in a thread."""
    name = f"sm_{tiles.architecture(machine.capability)}"
    for tile in dict.fromkeys(tile for _, tile in tiles.shipped_tiles(name)):
        yield partial(_layers, sizes, machine.device, sizes.check_tokens[-2:], torch.bfloat16, GROUP, tile)
    for dtype in BOUNDS:
        for group in (32, 64, 0):
            if sizes.i % (group or 1) == 0:
                yield partial(_layers, sizes, machine.device, sizes.check_tokens, dtype, group)
    for dtype in BOUNDS:
        for n, k in sizes.linears[:4]:
            yield partial(_linears, sizes, machine.device, n, k, dtype)


def _layers(  # noqa: PLR0913, PLR0917 - a comparison has so many sides
    sizes: Sizes, device: str, tokens: tuple[int, ...], dtype: torch.dtype, group: int, tile: tiles.Tile | None = None
) -> list[Check]:
    found = []
    for t in tokens:
        layer = make_layer(sizes, t, sizes.check_e, device, group=group, dtype=dtype)
        both = (tile, tile) if tile else None
        out = fused.moe(layer.x, layer.chosen, layer.share, layer.gate_up, layer.down, tiles=both)
        found.append((f"experts {dtype} group {group} t {t} {tile or ''}", _error(out, expected(layer)), BOUNDS[dtype]))
    return found


def _linears(sizes: Sizes, device: str, n: int, k: int, dtype: torch.dtype) -> list[Check]:
    found = []
    for t in sizes.check_tokens:
        weight = make_linear(n, k, device)
        x = torch.randn(t, k, device=device).to(dtype)
        error = _error(fused.linear(x, weight), x.double() @ dense(weight, dtype).T)
        found.append((f"linear {n}x{k} {dtype} t {t}", error, BOUNDS[dtype]))
    return found


def expected(layer: Layer) -> torch.Tensor:
    """The layer in float64, one expert at a time."""
    out = torch.zeros_like(layer.x, dtype=torch.float64)
    for e in range(len(layer.down.words)):
        token, place = torch.where(layer.chosen == e)
        weights = (Packed(w.words[e], w.scale[e]) for w in (layer.gate_up, layer.down))
        gate_up, down = (dense(w, layer.x.dtype) for w in weights)
        gate, up = (layer.x[token].double() @ gate_up.T).chunk(2, -1)
        y = (functional.gelu(gate, approximate="tanh") * up) @ down.T
        out.index_add_(0, token, y * layer.share[token, place, None].double())
    return out


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The error relative to the size; NaN where memory was left as it was."""
    return float((found.double() - wanted).norm() / wanted.norm())
