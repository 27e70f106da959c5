"""Measures how products are best cut on a GPU, and writes a table that stays with the user.

Each shape is run with each candidate, from a CUDA graph and on weights that change from launch to launch, so that they
come from memory and not from the cache, as in a model. What does not fit the GPU is passed over. Nothing else in
g4convert measures: models use the table that ships, or this one where the variable G4CONVERT_TILES names it.

No GPU was at hand when this was written: the search is tested with made-up times, the timing has not been run.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product as every
from pathlib import Path
from statistics import median

import torch
import triton

from g4convert.errors import EnvironmentFault
from g4convert.kernels import fused
from g4convert.kernels.packed import Packed, ready
from g4convert.kernels.tiles import Shape, Tile, save_table

__all__ = ["CANDIDATES", "autotune", "graph_seconds", "layer_shapes", "linear_shapes", "measure", "random_packed"]

TOKENS = (1, 8, 32, 64, 128, 512, 4096)

CANDIDATES = tuple(
    Tile(m, n, k, warps, stages)
    for m, (n, warps), k, stages in every((16, 32, 64, 128), ((32, 2), (64, 4), (128, 8)), (128, 256), (2, 3, 4))
)
"""Tiles that are tried. Each warp has 16 rows of the weight, so no code is unpacked twice."""

_CACHE_TIMES = 4
_MOST_COPIES = 16


def layer_shapes(h: int, i: int, e: int, top_k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """The two products of a layer of experts.

    Args:
        h: hidden size.
        i: intermediate size of an expert.
        e: experts.
        top_k: experts of a token.
        group: weights of a scale.
        tokens: of a forward.
    """
    rows = dict.fromkeys(triton.next_power_of_2(triton.cdiv(t * top_k, e)) for t in tokens)
    pairs = ((Shape("gate_up", e, i, h, min(group, h), r), Shape("down", e, h, i, min(group, i), r)) for r in rows)
    return [shape for pair in pairs for shape in pair]


def linear_shapes(n: int, k: int, group: int, tokens: Sequence[int] = TOKENS) -> list[Shape]:
    """The products of a linear [n, k], `group` weights sharing a scale."""
    return [Shape("linear", 1, n, k, min(group, k), triton.next_power_of_2(t)) for t in tokens]


def autotune(
    shapes: Iterable[Shape],
    path: Path,
    *,
    device: int = 0,
    candidates: Sequence[Tile] = CANDIDATES,
    time: Callable[[Shape, Tile], float] | None = None,
) -> dict[Shape, Tile]:
    """Measure every candidate on every shape, and write the best.

    Both products of a layer take the same block_m, or its pairs would be sorted twice: the one with the least sum.

    Args:
        shapes: of `layer_shapes` and `linear_shapes`.
        path: of the table that is written.
        device: number of the GPU.
        candidates: what is tried.
        time: seconds of a product, infinite where it does not run; None measures on the device.

    Returns:
        The best of each shape.

    Raises:
        EnvironmentFault: no such GPU, or no candidate runs on it.
    """
    if time is None:
        if torch.cuda.device_count() <= device:
            raise EnvironmentFault(f"autotune: {torch.cuda.device_count()} CUDA devices found", hint="it needs a GPU")
        place = torch.device("cuda", device)
        ready(place, torch.bfloat16)
        time = partial(measure, device=place)
    best: dict[Shape, Tile] = {}
    for together in _layers(shapes):
        fitting = [[tile for tile in candidates if tile.block_n <= shape.n] for shape in together]
        seconds = [{tile: time(shape, tile) for tile in some} for shape, some in zip(together, fitting, strict=True)]
        best |= zip(together, _fastest(together, seconds), strict=True)
    major, minor = torch.cuda.get_device_capability(device)
    made_with = {"card": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    save_table(path, major * 10 + minor, best, made_with)
    return best


def _layers(shapes: Iterable[Shape]) -> list[list[Shape]]:
    """Shapes that are cut together: the two products of one layer, or a linear by itself."""
    layers: dict[tuple[object, ...], list[Shape]] = {}
    for shape in shapes:
        sizes = sorted((shape.n, shape.k)) if shape.kind != "linear" else [shape.n, shape.k]
        layers.setdefault((shape.kind == "linear", *sizes, shape.experts, shape.rows, shape.wide), []).append(shape)
    return list(layers.values())


def _fastest(together: Sequence[Shape], seconds: Sequence[dict[Tile, float]]) -> list[Tile]:
    """The fastest tile of each, all of one block_m."""
    choices: list[tuple[float, list[Tile]]] = []
    for block_m in sorted({tile.block_m for times in seconds for tile in times}):
        own = [{tile: s for tile, s in times.items() if tile.block_m == block_m} for times in seconds]
        if all(own):
            tiles = [min(times, key=times.__getitem__) for times in own]
            choices.append((sum(times[tile] for times, tile in zip(own, tiles, strict=True)), tiles))
    total, tiles = min(choices, key=lambda choice: choice[0], default=(float("inf"), []))
    if total == float("inf"):
        raise EnvironmentFault(f"autotune: no candidate runs for {', '.join(map(str, together))}")
    return tiles


def measure(shape: Shape, tile: Tile, *, device: torch.device) -> float:
    """Seconds of one product on a GPU; infinite where the tile asks for more than it has."""
    gated = shape.kind == "gate_up"
    width = 2 * shape.n if gated else shape.n
    touched = shape.experts * width * shape.k // 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    copies = max(1, min(_MOST_COPIES, _CACHE_TIMES * cache // touched))
    weights = [random_packed(shape.experts, width, shape.k, shape.group, device) for _ in range(copies)]
    count = shape.rows * shape.experts
    dtype = torch.float32 if shape.wide else torch.bfloat16
    x = torch.randn(count, shape.k, device=device, dtype=dtype)
    out = torch.empty(count, shape.n, device=device, dtype=dtype)
    if shape.kind == "linear":
        weights = [Packed(weight.words[0], weight.scale[0]) for weight in weights]
        routing = fused.Routing("rows", count, 1, triton.cdiv(count, tile.block_m))
    else:
        routing = fused.route(torch.randint(shape.experts, (count, 1), device=device), shape.experts, tile.block_m)
    try:
        return graph_seconds([partial(fused.product, x, w, out, routing, tile, gated=gated) for w in weights])
    except triton.runtime.errors.OutOfResources:
        return float("inf")


def random_packed(e: int, n: int, k: int, group: int, device: torch.device | str) -> Packed:
    """Random words and bf16 scales, made where they are: [e, n, k]."""
    words = torch.randint(-(1 << 31), 1 << 31, (e, n, k // 8), dtype=torch.int32, device=device)
    scale = torch.randn(e, n, k // group, device=device).mul_(k**-0.5 / 4)
    return Packed(words, scale.bfloat16())


def graph_seconds(runs: Sequence[Callable[[], object]], repeats: int = 20, passes: int = 5) -> float:
    """The median time of one run, all of them played again and again from one CUDA graph.

    Args:
        runs: launches of the same size on different memory.
        repeats: measurements.
        passes: times that all runs are in the graph.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # so in torch
    with torch.cuda.stream(side):  # compiles, and puts scales in order
        for run in runs:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in list(runs) * passes:
            run()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call] # the same
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times) / (len(runs) * passes)
