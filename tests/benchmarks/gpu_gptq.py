"""Times GPTQ on the GPU, by its parts: H of some tokens, its factor, and the columns of a weight.

The shapes are those of 26B-A4B and the widest of 31B. By them and the numbers of weights a layer's seconds follow;
what runs before them, the layer's own forward, is in the line of the small models.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from g4convert.calibration.moments import Moments
from g4convert.calibration.team import Team
from g4convert.quantization.factor import factorize
from g4convert.quantization.gptq import gptq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_layers import Machine, Results, Sizes

_GROUP = 32
_TOKENS = 4096


def parts(machine: Machine, sizes: Sizes, _results: Results) -> Iterator[str]:
    """A table of seconds by the shape of a weight."""
    yield f"| weight | H of {_TOKENS:,} tokens, ms | factor, ms | columns, ms |"
    yield "|---|---:|---:|---:|"
    with ThreadPoolExecutor(1) as pool:
        for n, k in sizes.rounded:
            times = " | ".join(f"{1e3 * one:,.0f}" for one in _seconds(machine, n, k, pool))
            yield f"| {n:,} x {k:,} | {times} |"


def _seconds(machine: Machine, n: int, k: int, pool: ThreadPoolExecutor) -> Iterator[float]:
    device = torch.device(machine.device)
    x = torch.randn(min(_TOKENS, 4 * k), k, device=device)
    moments = Moments(k, Team(pool), device)
    moments.add(x)  # what is loaded when first used
    yield _timed(lambda: moments.add(x), device)
    moments.finish()
    h = moments.take()
    again = h.clone()
    factor = factorize(h, 0.01)
    if factor is None:
        raise AssertionError("H has no factor")
    yield _timed(lambda: factorize(again, 0.01), device)
    w = np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)
    scale = np.full((n, k // _GROUP), 0.4, np.float32)
    gptq(w, scale, factor, pool)
    yield _timed(lambda: gptq(w, scale, factor, pool), device)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run, the device's queue emptied before and after it."""
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
