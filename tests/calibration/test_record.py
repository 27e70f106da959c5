"""Statistics of inputs: those that hooks on transformers' own forward see, for every family."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.grids import one_in, two_when_quick
from helpers.hooked import hooked
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from g4convert.calibration.kept import drop
from g4convert.calibration.record import record
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.statistics import FEW, InputStatistics, Statistics, source_of
from g4convert.conversion.weighting import read_statistics
from g4convert.errors import InputError, Interrupted
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

FAMILIES = ("moe", "dense", "unified", "e2b", "text", "unified_text")


def tokens(samples: int = 4, length: int = 24) -> Tokens:
    return Tokens(np.random.default_rng(0).integers(5, 250, (samples, length), dtype=np.int32))


@pytest.mark.parametrize("family", one_in(3, FAMILIES))
def test_every_linear_is_given_what_hooks_see(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, given = checkpoints(family), tokens()
    found = record(source, given, tmp_path / "scratch", workers=2)
    expected, top_k = hooked(source, given), top_k_of(source)
    assert {source_of(name) for name in expected} == {*found.inputs}
    for name, mean in expected.items():
        inputs = found.inputs[source_of(name)]
        own, wanted = inputs.mean_square, mean
        if ".experts." in name:
            expert = int(name.split(".")[3])
            assert inputs.tokens.sum() == 3 * 24 * top_k
            own, wanted = own[expert], np.nan_to_num(mean)
        assert np.allclose(own, wanted, rtol=2e-4, atol=1e-5 * wanted.max())
    drop(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def top_k_of(source: Path) -> int:
    text = json.loads((source / "config.json").read_text()).get("text_config", {})
    return int(text.get("top_k_experts") or 0)


def test_a_sample_is_not_touched_by_its_neighbours(e2b: Path, tmp_path: Path) -> None:
    both = tokens(3)
    one = record(e2b, Tokens(both.ids[[0, 2]]), tmp_path / "a")
    other = record(e2b, Tokens(both.ids[[1, 2]]), tmp_path / "b")
    whole = record(e2b, both, tmp_path / "c")
    for name, inputs in whole.inputs.items():
        mean = (one.inputs[name].mean_square.astype(np.float64) + other.inputs[name].mean_square) / 2
        assert np.allclose(inputs.mean_square, mean, rtol=1e-4)  # products of other shapes round otherwise


def test_threads_do_not_show(moe: Path, tmp_path: Path) -> None:
    hashes = {record(moe, tokens(), tmp_path / str(n), workers=n).hash for n in (1, 3)}
    assert len(hashes) == 1


class Stopping(Progress):
    """Stops at the second layer, as Ctrl-C does."""

    def __init__(self) -> None:
        self.done = 0

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.done += count
        if self.done == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name", two_when_quick(["hidden-0.f32", "hidden-1.f32", "stage-1.safetensors", "sealed-2.json", "run.json"])
)
def test_what_was_damaged_meanwhile_is_not_continued(
    name: str, recorded: Statistics, moe: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        record(moe, tokens(), scratch, progress=Stopping())
    path = scratch / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    watch = Told()
    assert record(moe, tokens(), scratch, progress=watch).hash == recorded.hash
    assert watch.done[0] == (2 if name == "hidden-1.f32" else 0)  # what the next layer writes is nobody's


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def tick(self, count: int) -> None:
        """See `Progress`."""
        self.done.append(count)


@pytest.mark.parametrize("family", one_in(2, ["moe", "e2b"]))
def test_a_stopped_run_continues_behind_its_last_layer(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = checkpoints(family)
    whole = record(source, tokens(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        record(source, tokens(), tmp_path / "stopped", progress=Stopping())
    before = (tmp_path / "stopped" / "stage-1.safetensors").stat().st_mtime_ns
    with pytest.raises(Interrupted):
        record(source, tokens(), tmp_path / "stopped", progress=Stopping())
    assert (tmp_path / "stopped" / "stage-1.safetensors").stat().st_mtime_ns == before
    assert record(source, tokens(), tmp_path / "stopped").hash == whole.hash


@pytest.fixture(scope="session")
def recorded(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """Statistics of the MoE on `tokens()`."""
    return record(moe, tokens(), tmp_path_factory.mktemp("recorded") / "scratch")


def saved(recorded: Statistics, path: Path) -> CalibrationFile:
    file = CalibrationFile(tokens().ids, "made here", recorded.model, recorded, {"kinds": {"noise": 96}})
    file.save(path)
    return file


def test_what_is_saved_is_loaded(recorded: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    made = saved(recorded, path)
    found = CalibrationFile.load(path)
    assert found.statistics is not None
    assert (found.statistics.hash, found.model) == (recorded.hash, recorded.model)
    assert (found.statistics.tokens, found.statistics.samples, found.statistics.length) == (made.hash, 4, 24)
    assert np.array_equal(found.ids, made.ids)
    assert (found.tokenizer, found.texts) == (made.tokenizer, made.texts)
    assert [one.name for one in tmp_path.iterdir()] == ["cal.safetensors"]


@pytest.mark.parametrize("at", [-10, -1000])
def test_damaged_files_are_refused(recorded: Statistics, at: int, tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    saved(recorded, path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_statistics(path)


def test_foreign_files_are_refused(recorded: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "cal.safetensors"
    tokens().save(path)
    with pytest.raises(InputError, match="token ids without statistics"):
        read_statistics(path)
    saved(recorded, path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    for change, words in (
        ({"version": "9"}, "version 9 of a calibration file, expected 1"),
        ({"model": "{}"}, "of another form: identity of a model"),
        ({"model": "[" * 100_000}, "of another form"),
        ({"texts": "no JSON"}, "of another form"),
        ({"statistics": ""}, "damaged"),
    ):
        other = tmp_path / "other.safetensors"
        save_file(load_file(path), other, metadata=metadata | change)
        with pytest.raises(InputError, match=words):
            read_statistics(other)
    with pytest.raises(InputError, match="not a calibration file"):
        read_statistics(tmp_path / "absent")


def test_statistics_of_a_form_that_cannot_be_are_refused(tmp_path: Path) -> None:
    ids, path = tokens().ids, tmp_path / "cal.safetensors"
    good = np.ones(8, np.float32)
    for squares, count in (
        (good * -1, np.array([3])),
        (good * np.nan, np.array([3])),
        (good, np.array([-3])),
        (good, np.array([3, 4])),
        (good.astype(np.float64), np.array([3])),
        (good[:0], np.array([3])),
    ):
        CalibrationFile(
            ids, statistics=Statistics({"layers.0.mlp.down_proj": InputStatistics(squares, count)}, None)
        ).save(path)
        with pytest.raises(InputError, match=r"of another form: layers\.0\.mlp\.down_proj"):
            read_statistics(path)


def test_experts_with_few_tokens_lean_on_their_layer() -> None:
    squares = np.array([[4, 0], [1, 1], [0, 0]], np.float32)
    inputs = InputStatistics(squares, np.array([1000, 8, 0]))
    prior = (1000 * squares[0] + 8 * squares[1]) / 1008
    assert np.allclose(inputs.of_expert(2), prior)
    assert np.allclose(inputs.of_expert(1), (8 * squares[1] + FEW * prior) / (8 + FEW))
    found = Statistics({"layers.0.experts.gate_proj": inputs}, None)
    assert found.experts_with(0) == ["layers.0.experts.2"]
    assert np.array_equal(found.of("layers.0.experts.1.up_proj"), inputs.of_expert(1))
