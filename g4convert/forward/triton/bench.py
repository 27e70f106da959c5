"""Runs products on a GPU to time them, each with any tile, on weights that are made once.

A product is played again and again from a CUDA graph. Weights and routings change from launch to launch, so that they
come from memory and not from the cache, as in a model. Before anything is timed every variant has run once: runs come
from as many threads as there are cores, since the first one compiles (the compiler works outside Python's lock), and
what comes out is compared with float64. A tile that does not fit the GPU, or computes something else, takes forever.

    rows of an expert   what is timed
    1                   one token of 8 experts, not sorted, and half as many pairs as experts: the geometric mean
    r > 1               r pairs for each expert, sorted
    linear              as many rows as it says
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean

import torch
import triton
from torch.nn import functional
from triton.errors import TritonError

from g4convert.forward.triton import fused
from g4convert.forward.triton.packed import Packed
from g4convert.forward.triton.tiles import Kind, Shape, Tile
from g4convert.forward.triton.timing import Clock, dense, graph_seconds, in_threads, random_packed

_TOP_K = 8
_CACHE_TIMES = 4
_LAUNCHES = 16
_MOST_LAUNCHES = 128
_BOUND = 2e-2
"""The largest relative error of a product in bf16 is 4e-3; of one with a wrong scale or nibble, above 1e-1."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Rows for one product, and room for what comes out.

    Args:
        kind: kind of product.
        x: [t, k], in the order of the features.
        chosen: int64 [t, top_k] of each launch, or None.
        share: float32 [count], or None.
        out: [count, n].
    """

    kind: Kind
    x: torch.Tensor
    chosen: Sequence[torch.Tensor | None]
    share: torch.Tensor | None
    out: torch.Tensor

    @property
    def top_k(self) -> int:
        """Pairs that share a row of `x`."""
        return len(self.out) // len(self.x)


class LayerBench:
    """One layer of experts or one linear on a GPU, with random weights.

    Args:
        shapes: its products; what they differ in beside rows is their kind.
        device: the GPU; the CPU where Triton interprets.
        clock: `graph_seconds`, or another where there is no GPU.
    """

    def __init__(self, shapes: Iterable[Shape], device: torch.device, clock: Clock | None = None) -> None:
        self._device, self._clock = device, clock or graph_seconds
        self._shapes = {shape.kind: shape for shape in shapes}
        self._weights = {kind: _copies(shape, device) for kind, shape in self._shapes.items()}
        self._failed: dict[tuple[Kind, Tile], str] = {}
        self._works: dict[tuple[Kind, int], _Work] = {}

    def try_out(self, candidates: Iterable[tuple[Shape, Tile]]) -> Iterator[str]:
        """Run every variant once, which compiles it, and check what it computes.

        Args:
            candidates: shapes and tiles that are to be timed; those that need the same variant share a run.

        Yields:
            After each run its number and how many there are, for a reader.
        """
        variants = list(
            dict.fromkeys(
                (shape.kind, tile, _sample(shape.kind, count)) for shape, tile in candidates for count in _counts(shape)
            )
        )
        for kind, _, count in variants:  # before there are threads
            self._work(kind, count)
        expected = {(kind, count): self._expected(kind, count) for kind, _, count in variants}
        checks = [partial(self._check, *variant, expected[variant[0], variant[2]]) for variant in variants]
        for done, (variant, reason) in enumerate(in_threads(checks), 1):
            if reason:
                self._failed[variant] = reason
            yield f"{done} of {len(variants)} variants compiled"

    def seconds(self, shape: Shape, tile: Tile, repeats: int) -> float:
        """Return the seconds of one product; infinite where the tile does not run, or computes something else."""
        if (shape.kind, tile) in self._failed:
            return math.inf
        return geometric_mean(
            self._clock(self._make_runs(shape.kind, tile, count), repeats) for count in _counts(shape)
        )

    def _make_runs(self, kind: Kind, tile: Tile, count: int) -> list[Callable[[], None]]:
        """Return launches on different memory."""
        work, weights = self._work(kind, count), self._weights[kind]
        x = fused.by_slices(work.x)
        routes = [self._route(work, tile, chosen) for chosen in work.chosen]
        return [
            partial(_launch, work, x, work.out, weights[i % len(weights)], routes[i % len(routes)], tile)
            for i in range(max(_LAUNCHES, len(weights)))
        ]

    def _check(self, kind: Kind, tile: Tile, count: int, expected: torch.Tensor) -> tuple[tuple[Kind, Tile], str]:
        """Return the reason why a variant cannot be used; empty where it can."""
        work = self._work(kind, count)
        out = torch.full_like(work.out, math.nan)
        try:
            route = self._route(work, tile, work.chosen[0])
            _launch(work, fused.by_slices(work.x), out, self._weights[kind][0], route, tile)
            error = float((out.double() - expected).norm() / expected.norm())
        except TritonError as problem:
            return (kind, tile), f"{type(problem).__name__}: {problem}"
        except RuntimeError as problem:
            if "PassManager" not in str(problem):  # what the compiler says where it fails
                raise
            return (kind, tile), str(problem)
        return (kind, tile), "" if error <= _BOUND else f"relative error {error:.0e}"

    def _expected(self, kind: Kind, count: int) -> torch.Tensor:
        """Return a product in float64, [count, n]."""
        work, weight = self._work(kind, count), self._weights[kind][0]
        chosen = work.chosen[0]
        if chosen is None:
            return work.x.double() @ dense(weight, work.x.dtype).T
        rows = []
        for pair, expert in enumerate(chosen.flatten().tolist()):
            weight_of_expert = dense(Packed(weight.words[expert], weight.scale[expert]), work.x.dtype)
            rows.append(weight_of_expert @ work.x[pair // work.top_k].double())
        out = torch.stack(rows)
        if kind == "gate_up":
            gate, up = out.chunk(2, -1)
            out = fused.by_slices(functional.gelu(gate, approximate="tanh") * up)
        return out if work.share is None else out * work.share.double()[:, None]

    def _route(self, work: _Work, tile: Tile, chosen: torch.Tensor | None) -> fused.Routing:
        if chosen is None:
            return fused.Routing("rows", len(work.out), 1, triton.cdiv(len(work.out), tile.block_m))
        return fused.route(chosen, self._shapes[work.kind].experts, tile.block_m)

    def _work(self, kind: Kind, count: int) -> _Work:
        """Return random rows, the same for every tile."""
        if (kind, count) not in self._works:
            shape, place = self._shapes[kind], self._device
            top_k = 1 if kind == "linear" else math.gcd(count, min(_TOP_K, shape.experts))
            tokens = count // top_k
            chosen = [
                None if kind == "linear" else torch.rand(tokens, shape.experts, device=place).topk(top_k).indices
                for _ in range(_LAUNCHES)
            ]
            dtype = torch.float32 if shape.wide else torch.bfloat16
            rows = count if kind == "down" else tokens
            self._works[kind, count] = _Work(
                kind,
                torch.randn(rows, shape.k, dtype=dtype, device=place),
                chosen,
                torch.rand(count, device=place) + 0.1 if kind == "down" else None,
                torch.empty(count, shape.n, dtype=dtype, device=place),
            )
        return self._works[kind, count]


def _launch(
    work: _Work, x: torch.Tensor, out: torch.Tensor, weight: Packed, routing: fused.Routing, tile: Tile
) -> None:
    fused.product(x, weight, out, routing, tile, share=work.share, top_k=work.top_k, gated=work.kind == "gate_up")


def _counts(shape: Shape) -> list[int]:
    """Return the numbers of pairs, or rows, of the products that a shape stands for."""
    if shape.kind == "linear":
        return [shape.rows]
    if shape.rows > 1:
        return [shape.rows * shape.experts]
    return list(dict.fromkeys((min(_TOP_K, shape.experts), max(1, shape.experts // 2))))


def _sample(kind: Kind, count: int) -> int:
    """Return the fewest rows with the same compiled kernel as `count`: 1 and multiples of 16 are special."""
    if count == 1:
        return 1
    whole = count % 16 == 0
    if kind == "linear" or count > fused.FEW_PAIRS:
        return 64 if whole else 56
    return 16 if whole else 8


def _copies(shape: Shape, device: torch.device) -> list[Packed]:
    """Make as many weights as the cache does not hold, with scales in the order in which they are read."""
    width = 2 * shape.n if shape.kind == "gate_up" else shape.n
    nbytes = shape.experts * width * shape.k // 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = min(_MOST_LAUNCHES, max(1, -(-_CACHE_TIMES * cache // nbytes)))
    stacked = [random_packed(shape.experts, width, shape.k, shape.group, device) for _ in range(count)]
    linear = shape.kind == "linear"
    weights = [Packed(one.words[0], one.scale[0]) if linear else one for one in stacked]
    for weight in weights:
        weight.by_groups()
    return weights
