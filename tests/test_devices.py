"""Models on a GPU: placement, shown on one that is not there (see `elsewhere`); CUDA itself was never run."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.elsewhere import CUDA, Elsewhere, elsewhere
from helpers.grids import one_in
from helpers.prompts import prompts

from g4convert import devices
from g4convert.devices import CPU, device_of, memory_faults, moved, torch_device
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.decoding import greedy
from g4convert.forward.load import DTypeName, Memory, load
from g4convert.forward.modules import W4A16Linear
from g4convert.forward.triton import tiles
from g4convert.forward.triton.packed import check_device
from g4convert.forward.tuning import products, tune
from g4convert.gemma4.family import Family
from g4convert.request import Level, Request
from g4convert.verification.logits.embedders import check_embedders, check_poolers
from g4convert.verification.run import verify

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Packed

    from g4convert.report import Report


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
        torch_device(name)
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
        Request(devices.Path("out"), device=name)


@pytest.mark.parametrize(("name", "there"), [("cuda", 0), ("cuda:1", 1), ("cuda:7", 2)])
def test_a_gpu_that_is_not_there(name: str, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(EnvironmentFault, match=f"--device {name}: {there} CUDA devices found") as raised:
        torch_device(name)
    assert raised.value.exit_code == 5
    assert "--device cpu" in raised.value.hint


def test_names_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [torch_device(name) for name in ("cpu", "cuda", "cuda:1")]
    assert found == [CPU, torch.device("cuda", 0), torch.device("cuda", 1)]


def test_room_on_a_gpu_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10**9))
    assert devices.is_roomy(800, CUDA)
    assert not devices.is_roomy(801, CUDA)
    assert devices.is_roomy(801)


def test_a_lack_of_memory_names_the_way_on() -> None:
    for error in (torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(EnvironmentFault, match="out of memory") as raised, memory_faults():
            raise error
        assert "--memory stream" in raised.value.hint
    with pytest.raises(RuntimeError, match="another"), memory_faults():
        raise RuntimeError("another")


def test_nothing_is_copied_on_the_cpu(moe: Path) -> None:
    tensor = torch.ones(3)
    given = {"a": tensor, "b": ({"c": tensor}, [tensor, 1]), "d": None}
    found = moved(given, CPU)
    assert found["a"] is found["b"][0]["c"] is found["b"][1][0] is tensor
    assert found["b"][1][1] == 1
    assert device_of(load(moe)) == device_of(len) == CPU


def test_the_gpu_that_is_not_there_refuses_what_cuda_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.arange(6.0).view(2, 3)
    with elsewhere(monkeypatch):
        there = one.to(CUDA)
        assert isinstance(there, Elsewhere)
        assert there.device == CUDA
        assert not isinstance(there.cpu(), Elsewhere)
        assert torch.equal((there @ there.T + 1).cpu(), one @ one.T + 1)
        assert torch.zeros(2, device=CUDA).device == CUDA
        for mixed in (lambda: there + one, lambda: torch.where(there > 0, there, one), lambda: one @ there.T):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()


def tensors(outputs: Any) -> list[torch.Tensor]:  # noqa: ANN401 - Outputs
    """Every tensor of what a probe gave."""
    inside = (outputs.layers, outputs.embedders, outputs.routers, outputs.expert_hits)
    raw = [] if outputs.raw_logits is None else [outputs.raw_logits]
    return [outputs.logits, *raw, *(tensor for each in inside for tensor in each.values())]


CASES: list[tuple[str, DTypeName, Memory]] = [
    *((family, "float32", "resident") for family in Family),
    ("assistant", "bfloat16", "stream"),
    ("moe", "bfloat16", "resident"),
    ("moe", "float32", "stream"),
    ("moe", "bfloat16", "stream"),
    ("text", "bfloat16", "stream"),
    ("text", "float32", "stream"),
    ("e2b", "bfloat16", "stream"),
]


@pytest.mark.parametrize(("family", "dtype", "memory"), one_in(6, CASES))
def test_the_same_bits_wherever_it_runs(
    family: str, dtype: DTypeName, memory: Memory, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4convert.forward.modules._FEW", 0)  # a few tokens have a product of their own on a CPU
    expected = load(packed(family), dtype=dtype, memory=memory)
    probes = prompts(expected)
    with elsewhere(monkeypatch):
        found = load(packed(family), dtype=dtype, memory=memory, device=torch_device("cuda"))
        assert device_of(found) == CUDA
        places = {tensor.device.type for tensor in (*found.parameters(), *found.buffers())}
        assert places <= ({"cuda"} if memory == "resident" else {"cuda", "meta", "cpu"})
        outputs = [tensors(ModelCandidate(found).run(probe)) for probe in probes]  # logits are made when asked for
    for probe, output in zip(probes, outputs, strict=True):
        pairs = list(zip(tensors(ModelCandidate(expected).run(probe)), output, strict=True))
        assert not any(isinstance(there, Elsewhere) for _, there in pairs)
        for here, there in pairs:  # float32 logits are W s^T on a CPU and s W^T elsewhere: their last bit may differ
            last = 2e-7 * float(here.abs().max()) if here.shape[-1] == found.config.get_text_config().vocab_size else 0
            torch.testing.assert_close(there, here, rtol=0, atol=last, equal_nan=True)


def test_a_streamed_model_leaves_the_large_table_in_its_file(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(monkeypatch):
        held = load(packed("e2b"), dtype="bfloat16", memory="stream", device=CUDA).state_dict()
    here = {name.rpartition(".")[0].rpartition(".")[2] for name, tensor in held.items() if tensor.device == CPU}
    assert here == {"embed_tokens_per_layer"}


@pytest.mark.parametrize("family", ["unified", "e2b"])
def test_modules_are_probed_where_they_are(family: str, packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(device: torch.device) -> list[str]:
        model = load(packed(family), device=device)
        return [one.line for one in (*check_embedders(model, model, limit=90), *check_poolers(model, limit=90))]

    with elsewhere(monkeypatch):
        there = found(CUDA)
    assert there == found(CPU) != []


@pytest.mark.full
def test_the_same_tokens_wherever_it_runs(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(device: torch.device) -> list[int]:
        return list(greedy(load(packed("moe"), device=device), [2, 5, 90], max_new_tokens=2))

    with elsewhere(monkeypatch):
        there = said(CUDA)
    assert there == said(CPU)


def numbers(report: Report) -> str:
    """Return the measurements as text; nan is equal to nan."""
    return json.dumps(report.metrics, default=str)


@pytest.mark.full
def test_a_verification_is_the_same_wherever_it_runs(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"messages": [{"role": "user", "content": "Which boats lie in the old harbour?"}]}\n')
    asked = {"output": packed("text"), "level": Level.LOGITS, "profile": "parity", "prompts": mine}
    with elsewhere(monkeypatch):
        there = verify(Request(**asked, device="cuda:0"))
    here = verify(Request(**asked))
    assert [one.line for one in there.findings] == [one.line for one in here.findings]
    assert numbers(there) == numbers(here)
    assert math.isfinite(here.metrics["parity"]["kl_mean"])


SECONDS = {8: 5.0, 16: 3.0, 32: 1.0, 64: 2.0, 128: 4.0}
"""Made-up times by rows of a tile."""


def test_autotune_measures_every_product_of_a_model_and_keeps_the_table(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from helpers.times import tuned  # noqa: PLC0415 -- needs Triton

    from g4convert.forward.triton import autotune  # noqa: PLC0415 -- the same

    table = tmp_path / "tiles.json"
    monkeypatch.setenv(tiles.VARIABLE, "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    asked: set[tuple[object, ...]] = set()

    def time(shape: tiles.Shape, tile: tiles.Tile) -> float:
        asked.add((shape.kind, shape.experts, shape.n, shape.k, shape.group))
        assert not shape.wide
        return SECONDS[tile.block_m]

    with elsewhere(monkeypatch):
        check_device.cache_clear()
        model = load(packed("moe"), dtype="bfloat16", memory="stream", device=CUDA)
        monkeypatch.setattr(autotune, "autotune", lambda shapes, path, **_: tuned(shapes, path, time))
        count = tune(model, table)
    check_device.cache_clear()
    assert {one for one in asked if one[0] != "linear"} == {("gate_up", 12, 192, 128, 32), ("down", 12, 128, 192, 32)}
    linears = {(one.out_features, one.in_features) for one in model.modules() if isinstance(one, W4A16Linear)}
    assert {one[2:4] for one in asked if one[0] == "linear"} == linears
    written = tiles.load_table(table, 90)
    assert count == len(written) == len(json.loads(table.read_text())["tiles"])
    assert all(tile.block_m == (16 if shape.rows < 16 else 32) for shape, tile in written.items())
    assert os.environ[tiles.VARIABLE] == str(table)
    assert all(shape.wide for shape in products(load(packed("moe"), memory="stream")))


def test_autotune_is_of_a_gpu_and_of_packed_weights(
    packed: Packed, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    with pytest.raises(UsageError, match="on the CPU"):
        tune(load(packed("moe"), memory="stream"), tmp_path / "tiles.json")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with elsewhere(monkeypatch):
        check_device.cache_clear()
        plain = load(moe, memory="stream", device=CUDA)
        with pytest.raises(UsageError, match="no packed weights"):
            tune(plain, tmp_path / "tiles.json")
        monkeypatch.setattr(torch.version, "cuda", None)
        check_device.cache_clear()
        with pytest.raises(EnvironmentFault, match="NVIDIA") as raised:
            tune(plain, tmp_path / "tiles.json")
    check_device.cache_clear()
    assert "cpu" in raised.value.hint
    assert not (tmp_path / "tiles.json").exists()
