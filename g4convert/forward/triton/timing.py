"""Random weights, the time of a run on a GPU, and runs from many threads: what measuring kernels takes."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import cycle, islice
from statistics import median
from typing import TypeVar

import torch

from g4convert.forward.triton.matmul import INTERPRETED
from g4convert.forward.triton.packed import Packed
from g4convert.run_options import usable_cores

_T = TypeVar("_T")

Clock = Callable[[Sequence[Callable[[], object]], int], float]
"""Seconds of one of several runs, measured so many times."""

_GRAPH_SECONDS, _LONG, _LEAST_RUNS = 2e-3, 1e-4, 8


def random_packed(e: int, n: int, k: int, group: int, device: torch.device | str) -> Packed:
    """Return random words and bf16 scales, made where they are: [e, n, k]."""
    words = torch.randint(-(1 << 31), 1 << 31, (e, n, k // 8), dtype=torch.int32, device=device)
    scale = torch.randn(e, n, k // group, device=device).mul_(k**-0.5 / 4)
    return Packed(words, scale.bfloat16())


def dense(weight: Packed, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight [n, k] in float64, as a product in `dtype` uses it."""
    shifts = 4 * torch.arange(8, device=weight.words.device, dtype=torch.int32)
    codes = ((weight.words.unsqueeze(-1) >> shifts) & 15).flatten(-2) - 8
    scale = weight.scale.to(dtype).double().repeat_interleave(weight.k // weight.groups, -1)
    return (codes * scale).to(dtype).double()


def in_threads(calls: Sequence[Callable[[], _T]]) -> Iterator[_T]:
    """Yield the results of calls, in the order in which they end; the first runs alone, so that Triton is set up once.

    Triton's interpreter keeps what it runs in globals: there one is called after the other.
    """
    yield from (call() for call in calls[: None if INTERPRETED else 1])
    if INTERPRETED:
        return
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for done in as_completed([pool.submit(call) for call in calls[1:]]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def graph_seconds(runs: Sequence[Callable[[], object]], repeats: int = 20) -> float:
    """Return the median time of one run, played again and again from one CUDA graph.

    The graph has each run at least once, but of those longer than 0.1 ms, which no cache holds, 8 will do. It takes
    at least 0.1 ms for each measurement: to start it takes some microseconds.

    Args:
        runs: launches of the same size on different memory.
        repeats: measurements, after one that does not count.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # so in torch
    torch.cuda.synchronize()  # a side stream does not wait for what the runs read
    with torch.cuda.stream(side):
        runs[0]()  # compiles
        few = runs[:_LEAST_RUNS]
        seconds = _event_seconds(lambda: [run() for run in few]) / len(few)
    torch.cuda.synchronize()
    count = max(len(runs) if seconds < _LONG else _LEAST_RUNS, math.ceil(_GRAPH_SECONDS / seconds))
    graph = _graph(runs, count)
    if (once := _event_seconds(graph.replay)) < repeats * _LONG:  # launches take longer than what they launch
        count = math.ceil(count * repeats * _LONG / once)
        graph = _graph(runs, count)
    return median(_event_seconds(graph.replay) for _ in range(repeats)) / count


def _graph(runs: Sequence[Callable[[], object]], count: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # the stream stays if a run fails
        for run in islice(cycle(runs), count):
            run()
    graph.replay()  # the first one also brings the graph to the GPU
    return graph


def _event_seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call] # the same
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
