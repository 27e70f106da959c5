"""The search for tiles, with made-up times; and the parts of the GPU benchmark that need none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from g4convert.errors import EnvironmentFault
from g4convert.kernels import autotune, tiles
from g4convert.kernels.tiles import Shape, Tile

BENCHMARK = Path(__file__).parent / "benchmarks" / "gpu.py"
LAYER = autotune.layer_shapes(2816, 704, 128, 8, 32, (1, 8, 512))


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")


def test_shapes_are_those_of_the_buckets() -> None:
    assert [(s.kind, s.n, s.k, s.rows) for s in LAYER] == [
        ("gate_up", 704, 2816, 1),
        ("down", 2816, 704, 1),
        ("gate_up", 704, 2816, 32),
        ("down", 2816, 704, 32),
    ]
    assert [s.rows for s in autotune.linear_shapes(64, 64, 64, (1, 9))] == [1, 16]


@pytest.mark.usefixtures("a_card")
def test_the_fastest_is_written_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"gate_up": Tile(32, 64, 128, 4, 4), "down": Tile(32, 32, 256, 2, 2), "linear": Tile(64, 128, 256, 8, 3)}

    def seconds(shape: Shape, tile: Tile) -> float:
        return 1.0 if tile == wanted[shape.kind] else 2.0 + tile.block_m / 100

    shapes = [*LAYER, *autotune.linear_shapes(4096, 2816, 32, (1,))]
    best = autotune.autotune(shapes, tmp_path / "own.json", time=seconds)
    assert best == {shape: wanted[shape.kind] for shape in shapes}
    assert json.loads((tmp_path / "own.json").read_text())["card"] == "a card"
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "own.json"))
    assert {shape: tiles.tile_for(shape, 90) for shape in shapes} == best


@pytest.mark.usefixtures("a_card")
def test_the_products_of_a_layer_share_their_blocks(tmp_path: Path) -> None:
    times = {("gate_up", 16): 5.0, ("down", 16): 1.0, ("gate_up", 64): 1.0, ("down", 64): 4.0}
    best = autotune.autotune(
        LAYER[:2], tmp_path / "own.json", time=lambda shape, tile: times.get((shape.kind, tile.block_m), 9.0)
    )
    assert {tile.block_m for tile in best.values()} == {64}


def test_no_tile_that_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no candidate runs"):
        autotune.autotune(LAYER, tmp_path / "own.json", time=lambda *_: float("inf"))
    assert not (tmp_path / "own.json").exists()


def test_no_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentFault, match="0 CUDA devices"):
        autotune.autotune(LAYER, tmp_path / "own.json")


def run_benchmark(*options: str, interpret: str = "0") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    command = [sys.executable, str(BENCHMARK), *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_the_benchmark_says_what_it_needs() -> None:
    ran = run_benchmark("--rehearse")
    assert ran.returncode == 2
    assert "TRITON_INTERPRET=1" in ran.stderr


def test_the_benchmark_goes_through_its_steps(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu: written by tests/benchmarks/gpu.py -->\nold\n<!-- /gpu -->\nafter\n")
    ran = run_benchmark("--rehearse", "--write", str(page), interpret="1")
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- /gpu -->\nafter\n")
    assert "old" not in text
    assert "comparisons with float64" in text
    assert "| 8 |" in text
    assert "- vLLM Marlin: " in text
