"""The benchmark for GPUs, where there is none: each section rehearsed, what it claims, what a wrong kernel does."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch
from helpers import TESTS
from torch.nn import functional

pytest.importorskip("triton")

from g4convert.forward.triton.autotune import TileChoice
from g4convert.forward.triton.tiles import Shape, Tile
from g4convert.forward.triton.timing import random_packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Modules: TypeAlias = "Callable[[str], Any]"
"""Gives a module of the benchmark by its name."""

BENCHMARKS = TESTS / "benchmarks"
PAGE = "before\n<!-- gpu: written by tests/benchmarks/gpu.py -->\nold\n<!-- /gpu -->\nafter\n"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Imports modules of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def run(*words: str, interpret: str = "1") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run(
        [sys.executable, *words], check=False, capture_output=True, text=True, env=environment, cwd=BENCHMARKS
    )


@pytest.mark.parametrize(("words", "needs"), [(["--rehearse"], "TRITON_INTERPRET=1"), ([], "no GPU")])
def test_it_says_what_it_needs(
    words: list[str],
    needs: str,
    module: Modules,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as left:
        module("gpu").main()
    assert left.value.code == 2
    assert needs in capsys.readouterr().err


@pytest.mark.full
def test_every_section_is_gone_through(tmp_path: Path) -> None:
    page, table = tmp_path / "page.md", tmp_path / "tiles.json"
    page.write_text(PAGE)
    ran = run("gpu.py", "--rehearse", "--model", "--tune", str(table), "--write", str(page))
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- /gpu -->\nafter\n")
    assert "old" not in text
    assert ran.stdout.strip() in text
    titles = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    before, after = ["One layer of experts", "Targets", "Its launches, us"], ["Linears", "Tiles"]
    assert titles == [*before, "Small models", "GPTQ, by its parts", *after]
    parts = dict(zip(["", *titles], re.split(r"^### .*$", text, flags=re.MULTILINE), strict=True))
    assert re.search(r"\n\d+ comparisons with float64, the worst at \d+% of its bound.\n", parts[""])
    assert re.search(r"\nCopy \d+ GB/s, bf16 product \d+ TFLOP/s.\n", parts[""])
    assert re.search(r"\| 8 \| [\d.]+ \|.*\| [\d.]+ \| - \| - \|\n", parts["One layer of experts"]), "grouped_mm ran"
    assert "- vLLM Marlin: vLLM: No module" in parts["One layer of experts"]
    assert len(re.findall(r"\| (met|missed) \|", parts["Targets"])) == 2
    assert parts["Targets"].count("| not measured | |") == 2
    head, _, row = parts["Its launches, us"].strip().splitlines()
    assert {"T", "gate_up", "down", "the rest"} < {cell.strip() for cell in head.split("|")}
    assert len(re.findall(r"-?[\d.]+", row)) == head.count("|") - 1
    steps = ["quantize", "verify --level logits", "generate", "quantize -r w4a16-g32-gptq"]
    passed = re.findall(r"^- (\w+), (.*): passed: ", parts["Small models"], flags=re.MULTILINE)
    assert passed == [("moe", step) for step in steps], parts["Small models"]
    assert re.search(r"\| 32 x 64 \| \d+ \| \d+ \| \d+ \|", parts["GPTQ, by its parts"])
    assert "| 32 x 32 | 8 |" in parts["Linears"]
    assert parts["Tiles"].count("\n    {") == 3
    written = json.loads(table.read_text())["tiles"]
    assert len(written) == len(re.findall(r"^\| (?:gate_up|down|linear) ", parts["Tiles"], flags=re.MULTILINE)) == 3


@pytest.mark.full
def test_a_wrong_kernel_ends_it_before_anything_is_timed() -> None:
    code = (
        "import sys, gpu; from g4convert.forward.triton import fused\n"
        "product = fused.product\n"
        "def wrong(x, *rest, **how): product(x.roll(1, -1), *rest, **how)\n"
        "fused.product = wrong\n"
        "sys.argv = ['gpu.py', '--rehearse']; gpu.main()"
    )
    ran = run("-c", code)
    assert ran.returncode == 1
    assert ran.stderr.startswith("WRONG: experts torch.bfloat16 group 32 t ")
    assert "Copy" not in ran.stdout
    *lines, last = ran.stderr.splitlines()
    assert all(line.startswith("WRONG: ") for line in lines)
    found = re.fullmatch(r"(\d+) of (\d+) comparisons are wrong", last)
    assert found, last
    assert found[1] == found[2] == str(len(lines)), "all are told"


@pytest.mark.full
def test_what_does_not_run_is_wrong_and_the_rest_is_told() -> None:
    code = (
        "import sys, torch, gpu; from g4convert.forward.triton import fused\n"
        "product = fused.product\n"
        "def breaks(x, *rest, **how):\n"
        "    if x.dtype is torch.float16: raise RuntimeError('CUDA error: an illegal memory access')\n"
        "    product(x, *rest, **how)\n"
        "fused.product = breaks\n"
        "sys.argv = ['gpu.py', '--rehearse']; gpu.main()"
    )
    ran = run("-c", code)
    assert ran.returncode == 1
    assert "RuntimeError: CUDA error: an illegal memory access" in ran.stderr
    wrong = [line for line in ran.stderr.splitlines() if line.startswith("WRONG: ")]
    assert len(wrong) == 3
    assert all("torch.float16" in line and "RuntimeError: relative error nan" in line for line in wrong)
    assert "Copy" not in ran.stdout


def test_a_section_that_fails_does_not_end_the_next(
    module: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = module("gpu")

    def fails(*_: object) -> Iterator[str]:
        yield "half a table"
        raise torch.OutOfMemoryError("no memory\nfor details")

    def runs(*_: object) -> Iterator[str]:
        yield "a number"

    page = tmp_path / "new.md"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--write", str(page)])
    monkeypatch.setattr(gpu, "sections", lambda **_: iter((("First", fails), ("Second", runs))))
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 1
    lines = page.read_text().splitlines()
    assert lines.index("half a table") < lines.index("FAILED: OutOfMemoryError: no memory") < lines.index("a number")


def test_a_run_that_is_cut_off_leaves_what_it_has(
    module: Modules,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = module("gpu")

    def first(*_: object) -> Iterator[str]:
        yield "a number"

    def dies(*_: object) -> Iterator[str]:
        yield "half a table"
        raise KeyboardInterrupt

    page = tmp_path / "new.md"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--write", str(page)])
    monkeypatch.setattr(gpu, "sections", lambda **_: iter((("First", first), ("Second", dies))))
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert "a number" in page.read_text()
    assert "half a table" in page.read_text()
    assert page.read_text().endswith("<!-- /gpu -->\n")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds", "0"])
    gpu.main()
    assert page.read_text().count("No time left.") == 2
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="no line"):
        gpu.main()
    assert page.read_text() == "no marks"


@pytest.mark.parametrize(
    ("change", "verdicts"),
    [
        ({}, ["met", "met", "met", "met"]),
        ({8: {"roof": 0.69}}, ["missed", "met", "met", "met"]),
        ({1: {"roof": 0.44}}, ["met", "missed", "met", "met"]),
        ({4096: {"done": 299e12}}, ["met", "met", "missed", "met"]),
        ({64: {"rivals": {"bf16 grouped_mm": 2.9}}}, ["met", "met", "met", "missed"]),
        ({512: {"roof": 0.1, "rivals": {"bf16 grouped_mm": "refuses"}}}, ["met", "met", "met", "met"]),
    ],
)
def test_targets_are_met_by_the_worst_number(
    module: Modules,
    change: dict[int, dict[str, Any]],
    verdicts: list[str],
) -> None:
    times = module("gpu_times")
    layers = module("gpu_layers")
    results = layers.Results()
    for t in (1, 8, 64, 128, 512, 4096):
        row = {"roof": 0.7, "done": 300e12, "rivals": {"bf16 grouped_mm": 3.0}, **change.get(t, {})}
        results.layers.append(layers.Timed(t=t, seconds=1.0, moved=1.0, **row))
    lines = list(times.verdict(None, None, results))[2:]
    assert [line.split("|")[-2].strip() for line in lines] == verdicts
    assert list(times.verdict(None, None, layers.Results()))[2].endswith("| not measured | |")


def test_grouped_mm_is_the_same_layer(module: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rival computes what it is compared for, with weights of its own; two experts are idle."""
    rivals = module("rivals")
    e, h, i, top_k, t = 6, 64, 32, 2, 9
    drawn: list[torch.Tensor] = []
    randn = torch.randn
    x, chosen = randn(t, h).bfloat16(), torch.rand(t, e - 2).topk(top_k).indices
    weights = random_packed(e, 2 * i, h, 32, "cpu"), random_packed(e, h, i, 32, "cpu")
    layer = rivals.Layer(x, chosen, torch.rand(t, top_k), *weights)

    def draw(*shape: int, **how: Any) -> torch.Tensor:  # noqa: ANN401 - passed on
        drawn.append(randn(*shape, **how))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", draw)
    found = rivals.grouped_mm(layer)()
    gate_up, down = (one.double() for one in drawn)
    wanted = torch.zeros(t, h, dtype=torch.float64)
    for token, place in ((token, place) for token in range(t) for place in range(top_k)):
        expert = chosen[token, place]
        gate, up = (gate_up[expert] @ x[token].double()).chunk(2)
        said = down[expert] @ (functional.gelu(gate, approximate="tanh") * up)
        wanted[token] += layer.share[token, place].double() * said
    assert (found.double() - wanted).norm() / wanted.norm() < 1e-2


def test_rows_of_the_table_that_ships_follow_from_what_was_measured(module: Modules) -> None:
    tune = module("gpu_tune")
    flat, tall = Tile(16, 32, 256, 2, 3), Tile(64, 128, 256, 8, 2)

    def choice(best: Tile, times: dict[Tile, float]) -> TileChoice:
        return TileChoice(best, times[best], flat, times[flat], times)

    def linear(n: int, rows: int) -> Shape:
        return Shape("linear", 1, n, 64, 32, rows)

    found = {
        linear(64, 1): choice(flat, {flat: 1.0, tall: 2.0}),
        linear(64, 8): choice(flat, {flat: 1.0, tall: 1.1}),
        linear(128, 8): choice(tall, {flat: 10.5, tall: 10.0}),
        linear(64, 64): choice(flat, {flat: 1.0, tall: 1.1}),
        linear(128, 64): choice(tall, {flat: 30.0, tall: 10.0}),
    }
    rows = tune.shipped_rows("linear", found)
    assert [(row["rows"], row["block_m"]) for row in rows] == [(8, 16), (None, 64)]
    assert Tile(**{name: row for name, row in rows[1].items() if name != "rows"}) == tall
    assert tune.shipped_rows("down", found) == []


@pytest.mark.full
def test_it_needs_torch_and_triton_only() -> None:
    """Nothing can be installed on the machine it runs on; small models are asked for by an option."""
    heavy = "pydantic compressed_tensors numba transformers rich typer yaml safetensors"
    code = f"import sys, gpu; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert run("-c", code, interpret="0").stdout == "[]\n"
