"""`gptq` on a GPU that is pretended: nothing is left on the other side, and the codes are the CPU's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.card import CARD, Card, Inline, OnCard
from helpers.conversions import stored
from helpers.grids import one_in

from g4convert.calibration import record as recording
from g4convert.calibration import rounding
from g4convert.calibration import run as layers
from g4convert.calibration.run import LayerByLayer
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.gemma4 import Architecture
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress
from g4convert.quantization.factor import Factor, factorize
from g4convert.quantization.gptq import gptq, nearest_codes, torch_gptq
from g4convert.quantization.weighted import weighted_scales

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.array_types import F32, I8
    from g4convert.conversion.result import Summary


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(5, 250, (8, 32), dtype=np.int32)).save(path)
    return path


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let layers run on the pretended GPU, except the columns of GPTQ: thousands of operations on few numbers."""

    def columns(w: F32, scale: F32, factor: Factor, pool: Executor, code_max: int) -> I8:
        assert isinstance(factor.upper, Card)
        there = replace(factor, upper=factor.upper.cpu(), order=factor.order.cpu())
        return gptq(w, scale, there, pool, code_max)

    monkeypatch.setattr(rounding, "gptq", columns)
    monkeypatch.setattr(layers, "torch_device", lambda _: CARD)
    monkeypatch.setattr(layers, "threads", lambda _: nullcontext(Inline()))


def converted(source: Path, output: Path, ids: Path) -> Summary:
    """Convert the first layer alone."""
    text = Architecture.from_config(Checkpoint.open(source).config).text
    rest = [{"layers": f"1-{len(text.layers) - 1}", "bits": 16}]
    conversion = prepare(Job(Source.at(source), load("w4a16-g32-gptq", {"rules": rest}), output, calibration=ids))
    summary = convert(conversion, Progress(), Ranks(), LayerByLayer.of(conversion, ids))
    assert summary is not None
    return summary


@pytest.mark.parametrize("family", one_in(4, ["moe", "text", "e2b", "dense"]))
def test_all_of_a_layer_runs_there(
    family: str, checkpoints: Checkpoints, ids: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = converted(checkpoints(family), tmp_path / "here", ids)
    request.getfixturevalue("card")
    with OnCard():
        there = converted(checkpoints(family), tmp_path / "there", ids)
    assert here.calibration is not None
    assert there.calibration is not None
    assert there.calibration["output_error"] == pytest.approx(here.calibration["output_error"], rel=1e-3)
    ours, theirs = stored(tmp_path / "here"), stored(tmp_path / "there")
    other = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert len(other) <= len(ours) // 50, other  # a code near a tie


@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(2, ["e2b", "moe"]))
def test_statistics_are_the_same_from_there(
    family: str, checkpoints: Checkpoints, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens.load(ids, 1 << 20)
    here = recording.record(checkpoints(family), tokens, tmp_path / "here")
    monkeypatch.setattr(recording, "threads", lambda _: nullcontext(Inline()))
    with OnCard():
        there = recording.record(checkpoints(family), tokens, tmp_path / "there", device=CARD)
    assert here.inputs.keys() == there.inputs.keys()
    for name, one in here.inputs.items():
        assert np.array_equal(one.tokens, there.inputs[name].tokens)
        np.testing.assert_allclose(there.inputs[name].mean_square, one.mean_square, rtol=1e-4)


def test_what_is_forgotten_on_the_other_side_is_an_error() -> None:
    with OnCard():
        there = torch.ones(3).to(CARD)
        assert there.device == CARD
        assert (there + there).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="on the same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()


@pytest.mark.parametrize(("k", "group"), [(64, 32), (320, 64), (384, 384)])
def test_all_rows_at_once_give_the_codes_of_tiles(k: int, group: int) -> None:
    random = np.random.default_rng(k)
    x = (random.standard_normal((4 * k, k)) * np.exp(random.standard_normal(k))).astype(np.float32)
    w = random.standard_normal((300, k)).astype(np.float32)
    h = x.T @ x
    factor = factorize(torch.from_numpy(h.copy()), 0.01)
    assert factor is not None
    scale = weighted_scales(w, np.diagonal(h), group)
    tiles, whole = gptq(w, scale, factor, Inline()), torch_gptq(w, scale, factor)
    assert (tiles != whole).mean() < 1e-3  # near a tie
    assert np.abs(tiles.astype(int) - whole).max() <= 1


def test_the_device_of_the_factor_decides() -> None:
    w, scale = np.arange(64, dtype=np.float32).reshape(2, 32), np.full((2, 1), 9, np.float32)
    with OnCard():
        factor = Factor(torch.eye(32).to(CARD), torch.arange(32).to(CARD), 0.01, 1.0)
        assert (gptq(w, scale, factor, Inline()) == nearest_codes(w, scale)).all()


def test_scales_are_trained_on_the_cpu(moe: Path, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method best trains scales on the CPU") as caught:
        prepare(Job(Source.at(moe), load("w4a16-g32-best"), tmp_path / "out", device="cuda", calibration=ids))
    assert caught.value.hint == "--device cpu, or --method gptq"


def test_a_gpu_that_is_too_small_is_told(moe: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LayerByLayer, "_run_layers", full)
    with pytest.raises(EnvironmentFault, match="--device cpu: out of memory") as caught:
        converted(moe, tmp_path / "out", ids)
    assert "same command continues" in str(caught.value.hint)
