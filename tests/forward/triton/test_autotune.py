"""The search for tiles: with made-up times, in Triton's interpreter, and with a driver that only compiles."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("triton")

import kernel_aot as aot
import triton
from helpers.grids import one_in
from helpers.interpreted import Interpreter
from helpers.times import tuned
from triton.backends.compiler import GPUTarget

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.forward.triton import autotune, bench, candidates, fused, tiles, timing
from g4convert.forward.triton.tiles import Shape, Tile
from g4convert.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LAYER = candidates.layer_shapes(2816, 704, 128, 8, 32, (1, 8, 512))
LINEAR = candidates.linear_shapes(4096, 2816, 32, (1, 64))
LINEARS_OF_26B = (
    (4096, 2816),
    (2048, 2816),
    (2816, 4096),
    (8192, 2816),
    (1024, 2816),
    (2816, 8192),
    (2112, 2816),
    (2816, 2112),
)
HOPPER = 227 << 10
"""Bytes of shared memory that a program may have."""


@pytest.fixture(autouse=True)
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tiles.VARIABLE, "")


def by_height(shape: Shape, tile: Tile) -> float:
    """Made-up times."""
    return {8: 5.0, 16: 3.0, 32: 1.0, 64: 2.0, 128: 4.0}[tile.block_m] + (shape.kind == "down") + tile.block_k / 1024


def test_shapes_are_those_of_the_buckets() -> None:
    assert [(s.kind, s.n, s.k, s.rows) for s in LAYER] == [
        ("gate_up", 704, 2816, 1),
        ("down", 2816, 704, 1),
        ("gate_up", 704, 2816, 32),
        ("down", 2816, 704, 32),
    ]
    assert [s.rows for s in candidates.linear_shapes(64, 64, 64, (1, 9))] == [1, 16]
    assert {s.rows for s in candidates.layer_shapes(2816, 704, 128, 8, 32)} == {1 << i for i in range(9)}


def test_the_fastest_is_written_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"gate_up": Tile(16, 64, 128, 4, 4), "down": Tile(16, 32, 256, 2, 3), "linear": Tile(16, 128, 256, 4, 3)}

    def seconds(shape: Shape, tile: Tile) -> float:
        return 1.0 if tile == wanted[shape.kind] else 2.0 + tile.block_m / 100

    shapes = [*LAYER, *LINEAR]
    found = tuned(shapes, tmp_path / "own.json", seconds)
    assert {shape: choice.tile for shape, choice in found.items()} == {shape: wanted[shape.kind] for shape in shapes}
    assert all(choice.seconds == 1 for choice in found.values())
    assert all(choice.before_seconds == seconds(shape, choice.before) for shape, choice in found.items())
    assert json.loads((tmp_path / "own.json").read_text())["card"] == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "own.json"))
    assert {shape: tiles.tile_for(shape, 90) for shape in shapes} == {s: choice.tile for s, choice in found.items()}


def test_the_products_of_a_layer_share_their_blocks(tmp_path: Path) -> None:
    times = {("gate_up", 16): 5.0, ("down", 16): 1.0, ("gate_up", 64): 1.0, ("down", 64): 4.0}
    found = tuned(LAYER[2:], tmp_path / "own.json", lambda shape, tile: times.get((shape.kind, tile.block_m), 9.0))
    assert {choice.tile.block_m for choice in found.values()} == {64}


def test_a_short_time_that_was_luck_does_not_decide(tmp_path: Path) -> None:
    """The first time of a tile may be wrong by a half; then it is measured again."""
    lucky, best = Tile(16, 128, 256, 4, 4), Tile(16, 64, 128, 4, 3)
    asked: Counter[tuple[Shape, Tile]] = Counter()

    def seconds(shape: Shape, tile: Tile) -> float:
        asked[shape, tile] += 1
        return {lucky: 0.5 if asked[shape, tile] == 1 else 2.0, best: 1.0}.get(tile, 3.0)

    (found,) = tuned(LINEAR[:1], tmp_path / "own.json", seconds).values()
    assert (found.tile, found.seconds) == (best, 1.0)
    assert found.times[lucky] == 0.5
    assert sum(asked.values()) <= len(asked) + 5, "only the best ones, and the one that ships, are measured again"


class Tiles(Progress):
    """Counts what progress is told."""

    total = done = 0

    def step(self, name: str, total: int, unit: str) -> None:
        """See `Progress`."""
        assert (name, unit) == ("measuring", "tiles")
        self.total = total

    def tick(self, count: int, name: str = "") -> None:
        """See `Progress`."""
        assert name
        self.done += count


def test_a_run_that_was_stopped_goes_on_and_keeps_what_it_has(tmp_path: Path) -> None:
    path, told, asked = tmp_path / "own.json", Tiles(), set[Shape]()

    def stop(shape: Shape, tile: Tile) -> float:
        if shape == LINEAR[1]:
            raise KeyboardInterrupt
        return by_height(shape, tile)

    def seconds(shape: Shape, tile: Tile) -> float:
        asked.add(shape)
        return by_height(shape, tile)

    with pytest.raises(KeyboardInterrupt):
        tuned([*LAYER, *LINEAR], path, stop)
    assert tiles.load_table(path, 90).keys() == set(LAYER), "a layer or linear is there whole, or not at all"
    found = tuned([*LAYER, *LINEAR], path, seconds, progress=told)
    assert asked == found.keys() == set(LINEAR)
    assert tiles.load_table(path, 90).keys() == {*LAYER, *LINEAR}
    assert told.done == told.total == sum(len(choice.times) for choice in found.values())
    assert tuned([*LAYER, *LINEAR], path, stop) == {}, "nothing is left to measure"
    assert tuned(LAYER, path, seconds, card="another card").keys() == set(LAYER)
    assert tiles.load_table(path, 90).keys() == set(LAYER), "times of another card say nothing"


def test_a_file_that_is_no_table_stays(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada")
    with pytest.raises(UsageError, match="not a table of tiles"):
        tuned(LINEAR, path, by_height)
    assert path.read_text() == "Dear Ada"


def test_no_tile_that_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no candidate runs"):
        tuned(LAYER, tmp_path / "own.json", lambda *_: float("inf"))
    assert not (tmp_path / "own.json").exists()


def test_no_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentFault, match="0 CUDA devices"):
        autotune.autotune(LAYER, tmp_path / "own.json")


def shapes_of_26b() -> list[Shape]:
    linears = (candidates.linear_shapes(n, k, 32) for n, k in LINEARS_OF_26B)
    return [*candidates.layer_shapes(2816, 704, 128, 8, 32), *itertools.chain.from_iterable(linears)]


@pytest.mark.parametrize("shared", [math.inf, HOPPER, 99 << 10])
def test_what_is_tried_can_be_good_and_is_enough(shared: float) -> None:
    for shape in shapes_of_26b():
        some = candidates.candidates_for(shape, candidates.CANDIDATES, shared)
        assert 10 <= len(some) < len(candidates.CANDIDATES)
        assert all(tile.block_n <= shape.n for tile in some)
        assert {tile.block_m for tile in some} & {16, 32, 64}
        assert max(tile.block_m for tile in some) <= max(32, 2 * shape.rows)
        assert len({tile.block_n for tile in some}) >= 2
    assert not candidates.candidates_for(LAYER[0], [Tile(16, 64, 256, 4, 4)], 1 << 10)


def test_what_ships_would_be_found() -> None:
    shapes = [shape for shape in shapes_of_26b() if not shape.wide]
    for shape in shapes:
        tile = tiles.tile_for(shape, 90)
        assert candidates.candidates_for(shape, [tile], HOPPER) == [tile], shape


@pytest.mark.parametrize(
    "tile", one_in(3, [Tile(16, 32, 256, 2, 4), Tile(64, 128, 256, 8, 3), Tile(64, 64, 128, 4, 2)])
)
def test_no_more_memory_is_assumed_than_a_tile_takes(tile: Tile) -> None:
    """Or tiles that fit would not be tried."""
    taken = aot.compiled(aot.Variant("gate_up", tile), 90).metadata.shared
    shape = Shape("gate_up", 128, 704, 2816, 32, 64)
    assert candidates.candidates_for(shape, [tile], taken) == [tile]
    assert not candidates.candidates_for(shape, [tile], taken // 3)


TINY = candidates.layer_shapes(64, 32, 4, 2, 32, (1, 16))
TINY_LINEAR = candidates.linear_shapes(48, 64, 64, (1, 4, 32))
FINE, BAD = Tile(16, 32, 64, 4, 2), Tile(32, 16, 64, 4, 2)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    process = Interpreter()
    yield process
    process.pool.shutdown()


def benched(shapes: list[Shape], damage: str) -> list[tuple[Shape, Tile, float]]:
    """Time two tiles by `LayerBench` in Triton's interpreter, one of them damaged, a run taking a second."""
    from g4convert.forward.triton import fused  # noqa: PLC0415 - after TRITON_INTERPRET is set

    product = fused.product

    def damaged(x: Any, weight: Any, out: Any, routing: Any, tile: Tile, **how: Any) -> None:  # noqa: ANN401 - passed on
        match damage if tile == BAD else "":
            case "nothing is written":
                return
            case "does not fit":
                raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")
            case "is not compiled":
                raise RuntimeError("PassManager::run failed")
            case "fails":
                raise RuntimeError("an illegal memory access")
            case "another expert":
                product(x, weight, out.roll(1, 0), routing, tile, **how)
            case "one tenth more":
                product(x, weight, out, routing, tile, **how)
                out *= 1.1
            case _:
                product(x, weight, out, routing, tile, **how)

    def clock(runs: Any, repeats: int) -> float:  # noqa: ANN401 - of a clock
        runs[0]()
        runs[-1]()
        return float(repeats)

    fused.product = damaged
    try:
        one = bench.LayerBench(shapes, torch.device("cpu"), clock)
        some = [(shape, tile) for shape in shapes for tile in (FINE, BAD)]
        said = list(one.try_out(some))
        assert said[-1] == f"{len(said)} of {len(said)} variants compiled"
        return [(shape, tile, one.seconds(shape, tile, 1)) for shape, tile in some]
    finally:
        fused.product = product


@pytest.mark.full
@pytest.mark.parametrize("shapes", [TINY_LINEAR, TINY, [Shape("linear", 1, 32, 64, 32, 8, wide=True)]])
def test_every_tile_that_is_right_is_timed(shapes: list[Shape], interpreter: Interpreter) -> None:
    assert {seconds for _, _, seconds in interpreter(benched, shapes, "")} == {1.0}


@pytest.mark.full
@pytest.mark.parametrize(
    "damage", ["nothing is written", "does not fit", "is not compiled", "another expert", "one tenth more"]
)
def test_a_tile_that_is_wrong_takes_forever(damage: str, interpreter: Interpreter) -> None:
    """An empty kernel is the fastest of all."""
    for _, tile, seconds in interpreter(benched, TINY[2:], damage):
        assert seconds == (math.inf if tile == BAD else 1.0)


@pytest.mark.full
def test_an_error_of_the_gpu_is_not_a_tile_that_does_not_fit(interpreter: Interpreter) -> None:
    with pytest.raises(RuntimeError, match="illegal memory"):
        interpreter(benched, TINY[:1], "fails")


class CompilesOnly:
    """A driver of an H100 that is not there: kernels go all the way to the compiler, which only counts."""

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def get_current_device(self) -> int:
        """The first."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """An H100."""
        return GPUTarget("cuda", 90, 32)

    def compile(self, source: Any, **how: Any) -> Any:  # noqa: ANN401 - Triton has no types
        """Stand in for `triton.compile`."""
        self.compiled.append(f"{source.fn.__name__} {source.hash()} {how['options']}")
        return type("Kernel", (), {"function": None, "packed_metadata": None, **dict.fromkeys(METHODS, nothing)})()


METHODS = ("launch_metadata", "run")


def nothing(*_: object) -> None:
    """Stand in for a launch."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompilesOnly]:
    made, kernels = CompilesOnly(), (fused.matmul, fused.align)
    check = bench.LayerBench._check  # noqa: SLF001 - what runs, without the numbers that it looks at

    def ran(self: bench.LayerBench, kind: tiles.Kind, tile: Tile, *rest: Any) -> tuple[tuple[tiles.Kind, Tile], str]:  # noqa: ANN401 - passed on
        with pytest.raises(RuntimeError, match="meta tensors"):
            check(self, kind, tile, *rest)
        return (kind, tile), ""

    monkeypatch.setattr(bench.LayerBench, "_check", ran)
    monkeypatch.setattr(bench.LayerBench, "_expected", lambda *_: torch.empty(1, device="meta"))
    monkeypatch.setattr("triton.compiler.compile", made.compile)
    for kernel in kernels:
        kernel.device_caches.clear()
    triton.runtime.driver.set_active(made)
    yield made
    triton.runtime.driver.set_active(None)
    for kernel in kernels:
        kernel.device_caches.clear()


@pytest.mark.full
def test_a_26b_needs_as_many_variants_as_is_said_and_none_while_it_is_timed(driver: CompilesOnly) -> None:
    """The arithmetic in the docstring of `autotune`; weights have shapes and no memory."""
    timed = 0
    while_timed: list[str] = []

    def clock(runs: Sequence[Callable[[], object]], _: int) -> float:
        before = len(driver.compiled)
        for run in (runs[0], runs[-1]):
            run()
        while_timed.extend(driver.compiled[before:])
        return 1.0

    layers = itertools.groupby(shapes_of_26b(), lambda shape: (shape.kind == "linear") * (shape.n, shape.k))
    for shapes in (list(some) for _, some in layers):
        one = bench.LayerBench(shapes, torch.device("meta"), clock)
        some = [(s, tile) for s in shapes for tile in candidates.candidates_for(s, candidates.CANDIDATES, HOPPER)]
        assert list(one.try_out(some))
        timed += len(some)
        for shape, tile in some:
            one.seconds(shape, tile, 1)
    assert not [name for name in while_timed if name.startswith("matmul")]
    products = [name for name in driver.compiled if name.startswith("matmul")]
    said = re.findall(r"([\d,]+) variants|([\d,]+) tiles", str(autotune.__doc__))
    assert [int("".join(one).replace(",", "")) for one in said] == [len(products), timed]
    assert len(set(products)) == len(products), "nothing is compiled twice"


@pytest.mark.full
def test_threads_compile_what_one_alone_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    variants = [aot.Variant("down", Tile(16, n, 128, n // 16, stages)) for n in (32, 64) for stages in (2, 3)]
    alone = {aot.compiled(variant, 90).asm["ptx"] for variant in variants}
    found = [kernel.asm["ptx"] for kernel in timing.in_threads([partial(aot.compiled, v, 90) for v in variants])]
    assert len(alone) == len(found) == 4
    assert alone == set(found)


def test_an_error_in_a_thread_comes_out_and_ends_the_others() -> None:
    called: list[int] = []

    def call(number: int) -> None:
        called.append(number)
        if number == 2:
            raise ValueError("this one")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="this one"):
        list(timing.in_threads([partial(call, number) for number in range(400)]))
    assert len(called) < 400


class Cuda:
    """A GPU's clock: a launch takes the host 45 us, starting a graph takes 6 us."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.idle = seconds, 0.0, False
        self.recording: Counter[int] | None = None
        self.graphs: list[Counter[int]] = []

    def run(self, number: int) -> None:
        """A launch, of inputs that are there."""
        assert self.idle
        if self.recording is None:
            self.now += max(45e-6, self.seconds)
        else:
            self.now += 30e-6
            self.recording[number] += 1

    def synchronize(self) -> None:
        """Stand in for `torch.cuda.synchronize`."""
        self.idle = True

    @contextmanager
    def graph(self, recorded: Counter[int]) -> Iterator[None]:
        """Stand in for `torch.cuda.graph`."""
        self.recording = recorded
        yield
        self.recording = None
        self.graphs.append(recorded)


@pytest.mark.parametrize("seconds", [3e-6, 4e-5, 1.1e-4, 2e-3])
@pytest.mark.parametrize("repeats", [3, 20])
def test_the_time_of_a_run_is_measured_whatever_a_launch_costs(
    seconds: float, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda(seconds)

    class Graph(Counter[int]):
        def replay(self) -> None:
            cuda.now += 6e-6 + self.total() * seconds

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = cuda.now

        def synchronize(self) -> None:
            """Nothing runs beside."""

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    for name, value in {
        "Stream": object,
        "stream": lambda _: nullcontext(),
        "current_stream": object,
        "synchronize": cuda.synchronize,
        "CUDAGraph": Graph,
        "graph": cuda.graph,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found = timing.graph_seconds([partial(cuda.run, number) for number in range(16)], repeats)
    assert found == pytest.approx(seconds, rel=0.06 if repeats == 3 else 0.01)
    assert len(cuda.graphs[-1]) == (8 if seconds > 1e-3 else 16)
    assert cuda.now < (0.1 if repeats == 3 else 0.4)
