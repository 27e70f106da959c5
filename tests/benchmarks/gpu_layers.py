"""Inputs of the GPU benchmark: random weights of true shapes, routings, and the card's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from rivals import GROUP, Layer

from g4convert.forward.triton import fused
from g4convert.forward.triton.packed import Packed
from g4convert.forward.triton.timing import graph_seconds, random_packed

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """The true shapes of 26B-A4B, or small ones for a rehearsal.

    Args:
        h: hidden size.
        i: intermediate size of an expert.
        e: experts.
        top_k: experts of a token.
        tokens: tokens of a forward.
        layers: weights that are used in turn.
        check_e: experts of a layer that is compared with float64.
        check_tokens: tokens of those comparisons.
        linears: out_features and in_features.
        copied: MB of the copy that measures bandwidth.
        width: width of the product that measures the rate.
        tuned: tokens for which tiles are measured.
        models: small models that are run end to end.
        rounded: out_features and in_features of weights that GPTQ rounds.
    """

    h: int = 2816
    i: int = 704
    e: int = 128
    top_k: int = 8
    tokens: tuple[int, ...] = (1, 8, 32, 64, 128, 512, 4096)
    layers: int = 6
    check_e: int = 12
    check_tokens: tuple[int, ...] = (1, 3, 17, 100, 300)
    linears: tuple[tuple[int, int], ...] = (
        (4096, 2816),
        (2816, 4096),
        (2112, 2816),
        (2816, 2112),
        (2048, 2816),
        (8192, 2816),
        (2816, 8192),
        (1024, 2816),
    )
    copied: int = 2048
    width: int = 8192
    tuned: tuple[int, ...] = tuple(1 << i for i in range(13))
    models: tuple[str, ...] = ("moe", "e2b")
    rounded: tuple[tuple[int, int], ...] = ((704, 2816), (2816, 704), (2816, 8192), (5376, 21504))


REHEARSAL = Sizes(32, 32, 4, 2, (8,), 1, 4, (1, 9), ((32, 32),), 4, 128, (1,), ("moe",), ((32, 64),))


@dataclass(frozen=True)
class Machine:
    """The card that it runs on.

    Args:
        device: `cuda`, or `cpu` for a rehearsal.
        card: name of the GPU.
        capability: 90 for 9.0.
        until: when the time that was given is over, by `time.monotonic`.
    """

    device: str
    card: str
    capability: int
    until: float

    @classmethod
    def here(cls, device: str, seconds: float) -> Machine:
        """The GPU, or one that is rehearsed for."""
        until = time.monotonic() + seconds
        if device == "cpu":
            return cls(device, "no GPU: a rehearsal, times mean nothing", 90, until)
        major, minor = torch.cuda.get_device_capability()
        return cls(device, torch.cuda.get_device_name(), major * 10 + minor, until)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def seconds(self, runs: Sequence[Callable[[], object]], repeats: int = 20) -> float:
        """The median time of one of several runs: from a CUDA graph, or by the clock on the wall."""
        if self.device != "cpu":
            return graph_seconds(runs, repeats)
        times = []
        for run in (runs[0], runs[-1]):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return median(times)


@dataclass(frozen=True)
class Timed:
    """One row of the table of layers.

    Args:
        t: tokens.
        seconds: seconds of our layer.
        moved: bytes that must move.
        done: operations.
        roof: the least seconds, by the measured ceilings.
        rivals: seconds of the others; where one has none, the reason.
    """

    t: int
    seconds: float
    moved: float
    done: float
    roof: float
    rivals: dict[str, float | str]


@dataclass
class Results:
    """Results of one section that another needs."""

    bandwidth: float = 0.0
    rate: float = 0.0
    layers: list[Timed] = field(default_factory=list)


def make_layer(  # noqa: PLR0913 - a layer has so many sizes
    sizes: Sizes, t: int, e: int, device: str, *, group: int = GROUP, dtype: torch.dtype = torch.bfloat16
) -> Layer:
    """Random weights and routing; `group` 0 is one scale a row."""
    h, i = sizes.h, sizes.i
    gate_up = random_packed(e, 2 * i, h, group or h, device)
    down = random_packed(e, h, i, group or i, device)
    chosen = torch.rand(t, e, device=device).topk(min(sizes.top_k, e - 1)).indices
    share = torch.rand(chosen.shape, device=device)
    return Layer(torch.randn(t, h, device=device).to(dtype), chosen, share, gate_up, down)


def make_linear(n: int, k: int, device: str) -> Packed:
    """A random weight [n, k]."""
    stacked = random_packed(1, n, k, GROUP, device)
    return Packed(stacked.words[0], stacked.scale[0])


def with_tokens(sizes: Sizes, t: int, device: str, old: Layer) -> Layer:
    """Other tokens for the same weights."""
    chosen = torch.rand(t, sizes.e, device=device).topk(sizes.top_k).indices
    share = torch.rand(chosen.shape, device=device)
    return Layer(torch.randn(t, sizes.h, device=device).bfloat16(), chosen, share, old.gate_up, old.down)


def own(layer: Layer) -> Run:
    """Our kernels on a layer."""
    return partial(fused.moe, layer.x, layer.chosen, layer.share, layer.gate_up, layer.down)


def work(layer: Layer) -> tuple[int, int]:
    """Bytes that one layer must move, and operations it must do."""
    used = int(layer.chosen.unique().numel())
    e, (t, h), pairs, i = len(layer.down.words), layer.x.shape, layer.chosen.numel(), layer.down.k
    weights = sum(w.words.nbytes + w.scale.nbytes for w in (layer.gate_up, layer.down)) * used // e
    rows = t * h + 2 * pairs * i + 2 * pairs * h + t * h
    return weights + rows * layer.x.element_size(), 2 * pairs * 3 * h * i
