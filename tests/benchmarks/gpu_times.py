"""Speed: the card's own limits, a layer of experts and its launches, and linears, beside other kernels."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from gpu_layers import Machine, Results, Run, Sizes, Timed, make_layer, make_linear, own, with_tokens, work
from rivals import RIVALS, Layer, Unavailable, humming
from torch.nn import functional
from triton.runtime.jit import KernelInterface

from g4convert.forward.triton import fused
from g4convert.forward.triton.timing import in_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LINEARS = 6
"""Times the layers of experts: the smallest linears are 3 MB packed, and a cache of 50 MB would hold twelve."""


def ceilings(machine: Machine, sizes: Sizes, results: Results) -> Iterator[str]:
    """Bytes a second of a copy, read and written; operations a second of a bf16 product."""
    source = torch.empty(sizes.copied << 20, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(sizes.width, sizes.width, device=machine.device).bfloat16() for _ in range(2))
    results.bandwidth = 2 * source.numel() / machine.seconds([partial(target.copy_, source)])
    results.rate = 2 * sizes.width**3 / machine.seconds([partial(torch.mm, a, b)])
    yield f"Copy {results.bandwidth / 1e9:.0f} GB/s, bf16 product {results.rate / 1e12:.0f} TFLOP/s."


def layers(machine: Machine, sizes: Sizes, results: Results) -> Iterator[str]:
    """The table of a layer of experts."""
    yield "| T | us | GB/s | TFLOP/s | roofline | " + " | ".join(f"{name}, us" for name in RIVALS) + " |"
    yield "|---:" * (5 + len(RIVALS)) + "|"
    base = _base(machine, sizes)
    _compile(machine, sizes, base)
    for t in sizes.tokens:
        some = [with_tokens(sizes, t, machine.device, old) for old in base]
        seconds = machine.seconds([own(layer) for layer in some])
        moved, done = (sum(part) / len(some) for part in zip(*map(work, some), strict=True))
        roof = max(moved / results.bandwidth, done / results.rate)
        others = {name: _rival(make, some[:2], machine) for name, make in RIVALS.items()}
        row = Timed(t, seconds, moved, done, roof, others)
        results.layers.append(row)
        cells = [f"{took * 1e6:.1f}" if isinstance(took, float) else "-" for took in others.values()]
        yield (
            f"| {t} | {seconds * 1e6:.1f} | {moved / seconds / 1e9:.0f} | {done / seconds / 1e12:.1f} "
            f"| {roof / seconds:.0%} | {' | '.join(cells)} |"
        )
    yield ""
    reasons = {name: took for row in results.layers for name, took in row.rivals.items() if isinstance(took, str)}
    yield from (f"- {name}: {reason}" for name, reason in reasons.items())


def launches(machine: Machine, sizes: Sizes, results: Results) -> Iterator[str]:
    """Yield the time of each launch of a layer, and the rest: torch's own, and the gaps."""
    base = _base(machine, sizes)
    rows: list[tuple[int, dict[str, float]]] = []
    for row in results.layers:
        some = [with_tokens(sizes, row.t, machine.device, old) for old in base]
        every = [_recorded(own(layer)) for layer in some]
        parts = {name: machine.seconds([one[name] for one in every]) for name in every[0]}
        rows.append((row.t, parts | {"the rest": row.seconds - sum(parts.values())}))
    names = list(dict.fromkeys(name for _, parts in rows for name in parts if name != "the rest"))
    yield f"| T | {' | '.join(names)} | the rest |"
    yield "|---:" * (len(names) + 2) + "|"
    for t, parts in rows:
        cells = [f"{parts[name] * 1e6:.1f}" if name in parts else "-" for name in (*names, "the rest")]
        yield f"| {t} | {' | '.join(cells)} |"


def linears(machine: Machine, sizes: Sizes, _: Results) -> Iterator[str]:
    """The table of the linears."""
    yield "| n x k | T | us | GB/s | TFLOP/s | bf16, us | humming-kernels, us |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    reason = ""
    for n, k in sizes.linears[:4]:
        weights = [make_linear(n, k, machine.device) for _ in range(_LINEARS * sizes.layers)]
        for weight in weights:
            weight.by_groups()  # or a graph would have it
        plain = [torch.randn(n, k, device=machine.device).bfloat16() for _ in weights]
        inputs = [torch.randn(t, k, device=machine.device).bfloat16() for t in sizes.tokens]
        list(in_threads([partial(fused.linear, x, weights[0]) for x in inputs]))
        for t, x in zip(sizes.tokens, inputs, strict=True):
            ours = machine.seconds([partial(fused.linear, x, w) for w in weights])
            bf16 = machine.seconds([partial(functional.linear, x, w) for w in plain])
            other = _seconds_of(lambda x=x, n=n: machine.seconds([humming(x, n)]))
            reason = other if isinstance(other, str) else reason
            moved = weights[0].words.nbytes + weights[0].scale.nbytes + (x.numel() + t * n) * 2
            yield (
                f"| {n} x {k} | {t} | {ours * 1e6:.1f} | {moved / ours / 1e9:.0f} | {2 * t * n * k / ours / 1e12:.1f} "
                f"| {bf16 * 1e6:.1f} | {f'{other * 1e6:.1f}' if isinstance(other, float) else '-'} |"
            )
    if reason:
        yield from ("", f"- humming-kernels: {reason}")


def verdict(_machine: Machine, _sizes: Sizes, results: Results) -> Iterator[str]:
    """The targets: met or missed, and by which number."""
    shares = {row.t: row.roof / row.seconds for row in results.layers}
    faster = {
        row.t: took / row.seconds
        for row in results.layers
        if (took := row.rivals["bf16 grouped_mm"]) and isinstance(took, float)
    }
    rates = {row.t: row.done / row.seconds / 1e12 for row in results.layers}
    yield "| target | found | |"
    yield "|---|---|---|"
    yield _target("70 % of the roofline for T in 8..128", shares, range(8, 129), 0.7, "{:.0%}")
    yield _target("45 % of the roofline at T = 1", shares, range(1, 2), 0.45, "{:.0%}")
    yield _target("300 TFLOP/s at T = 4096", rates, range(4096, 4097), 300, "{:.0f}")
    yield _target("3 times bf16 `grouped_mm` for T up to 64", faster, range(1, 65), 3, "{:.1f}")


def _target(what: str, found: dict[int, float], tokens: range, least: float, form: str) -> str:
    """A line for one target: the worst number counts."""
    some = {t: number for t, number in found.items() if t in tokens}
    if not some:
        return f"| {what} | not measured | |"
    worst = min(some, key=some.__getitem__)
    at = f" at T = {worst}" if len(tokens) > 1 else ""
    return f"| {what} | {form.format(some[worst])}{at} | {'met' if some[worst] >= least else 'missed'} |"


def _base(machine: Machine, sizes: Sizes) -> list[Layer]:
    return [make_layer(sizes, 1, sizes.e, machine.device) for _ in range(sizes.layers)]


def _compile(machine: Machine, sizes: Sizes, base: Sequence[Layer]) -> None:
    """Run each number of tokens once, side by side: the first run of a kernel compiles it."""
    for weight in (weight for layer in base for weight in (layer.gate_up, layer.down)):
        weight.by_groups()
    list(in_threads([own(with_tokens(sizes, t, machine.device, base[0])) for t in sizes.tokens]))


def _rival(make: Callable[[Layer], Run], some: Sequence[Layer], machine: Machine) -> float | str:
    if machine.left < 0:
        return "no time left"
    return _seconds_of(lambda: machine.seconds([make(layer) for layer in some]))


def _seconds_of(time: Callable[[], float]) -> float | str:
    """The time of a rival, or why there is none."""
    try:
        return time()
    except Unavailable as reason:
        return str(reason)
    except (RuntimeError, TypeError, AssertionError) as error:  # of another version, or for another card
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _recorded(run: Run) -> dict[str, Callable[[], object]]:
    """The launches of Triton's kernels in a run, by name; each can be made again."""
    found: dict[str, Callable[[], object]] = {}
    with _watched(found):
        run()
    return found


@contextmanager
def _watched(found: dict[str, Callable[[], object]]) -> Iterator[None]:
    """Inside, kernels that `fused` launches tell of it."""
    kernels = {name: value for name, value in vars(fused).items() if isinstance(value, KernelInterface)}
    try:
        for name, kernel in kernels.items():
            setattr(fused, name, _Watched(kernel, name, found))
        yield
    finally:
        for name, kernel in kernels.items():
            setattr(fused, name, kernel)


class _Watched:
    """A kernel that records its launches."""

    def __init__(self, kernel: Any, name: str, found: dict[str, Callable[[], object]]) -> None:  # noqa: ANN401 - Triton's
        self._kernel, self._name, self._found = kernel, name, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **how: Any) -> None:  # noqa: ANN401 - of any kernel
        name = self._name
        if "gated" in how:
            name = "gate_up" if how["gated"] else "down"
        again = sum(known.startswith(name) for known in self._found)
        launch = partial(self._kernel[grid], *args, **how)
        self._found[f"{name} {again + 1}" if again else name] = launch
        launch()
