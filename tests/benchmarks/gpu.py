"""The packed kernels on a GPU: right against float64, then how fast, beside the card's own limits and other kernels.

    python tests/benchmarks/gpu.py [--write docs/benchmarks.md] [--seconds 540]

Needs torch for CUDA, its Triton, and this package; no network, no checkpoint, about 12 GB of GPU memory. Weights are
random, of the true shapes of 26B-A4B: 128 experts of 704, 8 to a token, hidden size 2816, groups of 32. First every
tile that ships for the card, every dtype and group, is compared with float64, over outputs full of NaN; a wrong one
ends the run with status 1 and nothing is timed. Then one layer of experts runs from CUDA graphs on several layers'
weights in turn, so that they come from memory; times are medians. `roofline` is the larger of the bytes that must move
by the copy bandwidth and the products by the bf16 matmul rate, both measured here, by the time that was taken.

`--rehearse` is for a machine without a GPU: the same steps on tiny shapes, with TRITON_INTERPRET=1 and clock times
that mean nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton
from rivals import GROUP, RIVALS, Layer, Unavailable, humming
from torch.nn import functional

from g4convert.kernels import autotune, fused, tiles
from g4convert.kernels.packed import Packed

MARKS = ("<!-- gpu: written by tests/benchmarks/gpu.py -->", "<!-- /gpu -->")
BOUNDS = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Sizes:
    """What is run: the true shapes, or small ones for a rehearsal."""

    h: int = 2816
    i: int = 704
    e: int = 128
    top_k: int = 8
    tokens: tuple[int, ...] = (1, 8, 32, 64, 128, 512, 4096)
    layers: int = 6
    check_e: int = 12
    check_tokens: tuple[int, ...] = (1, 3, 17, 100, 300)
    linears: tuple[tuple[int, int], ...] = ((4096, 2816), (2816, 4096), (2112, 2816), (2816, 2112))


REHEARSAL = Sizes(32, 32, 4, 2, (8,), 1, 4, (1, 9), ((32, 32),))

Clock = Callable[[Sequence[Callable[[], object]]], float]


def dense(weight: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The weight in float64 as a product in `dtype` uses it."""
    shifts = 4 * torch.arange(8, device=weight.words.device, dtype=torch.int32)
    codes = ((weight.words.unsqueeze(-1) >> shifts) & 15).flatten(-2) - 8
    scale = weight.scale.to(dtype).double().repeat_interleave(weight.k // weight.groups, -1)
    return (codes * scale).to(dtype).double()


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


def make_layer(  # noqa: PLR0913 - a layer has so many sizes
    sizes: Sizes, t: int, e: int, device: str, *, group: int = GROUP, dtype: torch.dtype = torch.bfloat16
) -> Layer:
    """Random weights and routing; `group` 0 is one scale a row."""
    h, i = sizes.h, sizes.i
    gate_up = autotune.random_packed(e, 2 * i, h, group or h, device)
    down = autotune.random_packed(e, h, i, group or i, device)
    chosen = torch.rand(t, e, device=device).topk(min(sizes.top_k, e - 1)).indices
    share = torch.rand(chosen.shape, device=device)
    return Layer(torch.randn(t, h, device=device).to(dtype), chosen, share, gate_up, down)


def checks(sizes: Sizes, device: str, capability: int) -> Iterator[tuple[str, float, float]]:
    """What is compared with float64, its error and the largest that is right."""
    name = f"sm_{tiles.architecture(capability)}"
    shipped = dict.fromkeys(tile for _, tile in tiles.shipped_tiles(name))
    plans = [
        (dtype, group, t, None)
        for dtype in BOUNDS
        for group in (32, 64, 0)
        for t in sizes.check_tokens
        if sizes.i % (group or 1) == 0
    ]
    plans += [(torch.bfloat16, GROUP, t, tile) for tile in shipped for t in sizes.check_tokens[-2:]]
    for dtype, group, t, tile in plans:
        layer = make_layer(sizes, t, sizes.check_e, device, group=group, dtype=dtype)
        out = fused.moe(
            layer.x, layer.chosen, layer.share, layer.gate_up, layer.down, tiles=(tile, tile) if tile else None
        )
        yield f"experts {dtype} group {group} t {t} {tile or ''}", relative(out, expected(layer)), BOUNDS[dtype]
    for n, k in sizes.linears:
        for dtype, t in ((dtype, t) for dtype in BOUNDS for t in sizes.check_tokens):
            stacked = autotune.random_packed(1, n, k, GROUP, device)
            weight = Packed(stacked.words[0], stacked.scale[0])
            x = torch.randn(t, k, device=device).to(dtype)
            error = relative(fused.linear(x, weight), x.double() @ dense(weight, dtype).T)
            yield f"linear {n}x{k} {dtype} t {t}", error, BOUNDS[dtype]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The error relative to the size; NaN where memory was left as it was."""
    return float((found.double() - wanted).norm() / wanted.norm())


def all_right(sizes: Sizes, device: str, capability: int) -> tuple[int, float]:
    """How many comparisons were made and the worst share of a bound; ends the program at the first that is wrong."""
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # new memory is filled with NaN
    count, worst = 0, 0.0
    for name, error, bound in checks(sizes, device, capability):
        if not error <= bound:
            sys.exit(f"WRONG: {name}: relative error {error:.2e}, at most {bound:.0e}")
        count, worst = count + 1, max(worst, error / bound)
    torch.use_deterministic_algorithms(mode=False)
    return count, worst


def ceilings(clock: Clock, device: str, megabytes: int, width: int) -> tuple[float, float]:
    """Bytes a second of a copy, read and written; operations a second of a bf16 product."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, device=device).bfloat16() for _ in range(2))
    return (
        2 * source.numel() / clock([partial(target.copy_, source)]),
        2 * width**3 / clock([partial(torch.mm, a, b)]),
    )


def work(layer: Layer) -> tuple[int, int]:
    """Bytes that one layer must move, and operations it must do."""
    used = int(layer.chosen.unique().numel())
    e, (t, h), pairs, i = len(layer.down.words), layer.x.shape, layer.chosen.numel(), layer.down.k
    weights = sum(w.words.nbytes + w.scale.nbytes for w in (layer.gate_up, layer.down)) * used // e
    rows = t * h + 2 * pairs * i + 2 * pairs * h + t * h
    return weights + rows * layer.x.element_size(), 2 * pairs * 3 * h * i


def own(layer: Layer) -> Callable[[], torch.Tensor]:
    """Our kernels on a layer."""
    return partial(fused.moe, layer.x, layer.chosen, layer.share, layer.gate_up, layer.down)


def seconds_of(
    make: Callable[[Layer], Callable[[], torch.Tensor]], layers: Sequence[Layer], clock: Clock
) -> float | str:
    """The time of one layer, or why there is none."""
    try:
        return clock([make(layer) for layer in layers])
    except Unavailable as reason:
        return str(reason)
    except (RuntimeError, TypeError, AssertionError) as error:  # of a rival of another version or for another card
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def layer_rows(sizes: Sizes, device: str, clock: Clock, limits: tuple[float, float], until: float) -> Iterator[str]:
    """The table of a layer of experts."""
    bandwidth, rate = limits
    yield "| T | us | GB/s | TFLOP/s | roofline | " + " | ".join(f"{name}, us" for name in RIVALS) + " |"
    yield "|---:" * (5 + len(RIVALS)) + "|"
    base = [make_layer(sizes, 1, sizes.e, device) for _ in range(sizes.layers)]
    reasons: dict[str, str] = {}
    for t in sizes.tokens:
        layers = [
            Layer(new.x, new.chosen, new.share, old.gate_up, old.down)
            for old in base
            for new in [make_routing(sizes, t, device, old)]
        ]
        ours = clock([own(layer) for layer in layers])
        moved, done = (sum(part) / len(layers) for part in zip(*map(work, layers), strict=True))
        roof = max(moved / bandwidth, done / rate)
        cells = [
            f"{t}",
            f"{ours * 1e6:.1f}",
            f"{moved / ours / 1e9:.0f}",
            f"{done / ours / 1e12:.1f}",
            f"{roof / ours:.0%}",
        ]
        for name, make in RIVALS.items():
            took = seconds_of(make, layers[:2], clock) if time.monotonic() < until else "no time left"
            cells.append(f"{took * 1e6:.1f}" if isinstance(took, float) else "-")
            if isinstance(took, str):
                reasons[name] = took
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield from (f"- {name}: {reason}" for name, reason in reasons.items())


def make_routing(sizes: Sizes, t: int, device: str, old: Layer) -> Layer:
    """Other tokens for the same weights."""
    chosen = torch.rand(t, sizes.e, device=device).topk(sizes.top_k).indices
    share = torch.rand(chosen.shape, device=device)
    return Layer(torch.randn(t, sizes.h, device=device).bfloat16(), chosen, share, old.gate_up, old.down)


def linear_rows(sizes: Sizes, device: str, clock: Clock) -> Iterator[str]:
    """The table of the linears."""
    yield "| n x k | T | us | GB/s | TFLOP/s | bf16, us | humming-kernels, us |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    reason = ""
    for n, k in sizes.linears:
        copies = [autotune.random_packed(1, n, k, GROUP, device) for _ in range(2 * sizes.layers)]
        weights = [Packed(w.words[0], w.scale[0]) for w in copies]
        plain = [torch.randn(n, k, device=device).bfloat16() for _ in weights]
        for t in sizes.tokens:
            x = torch.randn(t, k, device=device).bfloat16()
            ours = clock([partial(fused.linear, x, w) for w in weights])
            bf16 = clock([partial(functional.linear, x, w) for w in plain])
            try:
                other = f"{clock([humming(x, n)]) * 1e6:.1f}"
            except Unavailable as missing:
                other, reason = "-", str(missing)
            moved = weights[0].words.nbytes + weights[0].scale.nbytes + (x.numel() + t * n) * 2
            yield (
                f"| {n} x {k} | {t} | {ours * 1e6:.1f} | {moved / ours / 1e9:.0f} | {2 * t * n * k / ours / 1e12:.1f} "
                f"| {bf16 * 1e6:.1f} | {other} |"
            )
    yield ""
    if reason:
        yield f"- {reason}"


def wall_clock(runs: Sequence[Callable[[], object]]) -> float:
    """Times without a GPU."""
    times = []
    for run in runs:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)


def report(sizes: Sizes, device: str, seconds: float) -> Iterator[str]:
    """All of it, as Markdown."""
    until = time.monotonic() + seconds
    on_gpu = device.startswith("cuda")
    clock: Clock = autotune.graph_seconds if on_gpu else wall_clock
    card, capability = "no GPU: a rehearsal, times mean nothing", 90
    if on_gpu:
        major, minor = torch.cuda.get_device_capability()
        card, capability = torch.cuda.get_device_name(), major * 10 + minor
    count, worst = all_right(sizes, device, capability)
    bandwidth, rate = ceilings(clock, device, *((2048, 8192) if on_gpu else (4, 128)))
    today = dt.datetime.now(dt.UTC).date()
    yield f"{card}, torch {torch.__version__}, Triton {triton.__version__}, {today}."
    yield f"{count} comparisons with float64, the worst at {worst:.0%} of its bound."
    yield f"Copy {bandwidth / 1e9:.0f} GB/s, bf16 product {rate / 1e12:.0f} TFLOP/s."
    yield "\nOne layer of experts:\n"
    yield from layer_rows(sizes, device, clock, (bandwidth, rate), until)
    if time.monotonic() < until:
        yield "\nLinears:\n"
        yield from linear_rows(sizes, device, clock)


def write(path: Path, text: str) -> None:
    """Put the section between the marks of a document."""
    before, _, rest = path.read_text().partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        sys.exit(f"{path}: no line {MARKS[0]} with {MARKS[1]} after it")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


def main() -> None:
    """Run, print, and write the section if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="a document with the marks of this section")
    parser.add_argument("--seconds", type=float, default=540, help="after which nothing else is compared")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes in Triton's interpreter")
    arguments = parser.parse_args()
    if arguments.rehearse and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--rehearse needs TRITON_INTERPRET=1")
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("no GPU; --rehearse goes through the steps without one")
    torch.manual_seed(0)
    lines = []
    for line in report(
        REHEARSAL if arguments.rehearse else Sizes(), "cpu" if arguments.rehearse else "cuda", arguments.seconds
    ):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        lines.append(line)
    if arguments.write:
        write(arguments.write, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
