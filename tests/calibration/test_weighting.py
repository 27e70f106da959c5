"""Method imatrix from end to end: the same bytes however it runs, recorded in what it writes; bad input refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.conversions import stored
from helpers.runs import hashes
from safetensors import safe_open

from g4convert import quantize
from g4convert.calibration.record import record
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.source import Source
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.conversion.statistics import InputStatistics, Statistics
from g4convert.conversion.weighting import read_statistics
from g4convert.errors import InputError, UsageError
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.conversion.result import Summary

IDS = np.random.default_rng(0).integers(5, 250, (6, 24), dtype=np.int32)


@pytest.fixture(scope="session")
def data(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("statistics")
    return written(record(moe, Tokens(IDS), directory / "scratch"), directory / "cal.safetensors")


def written(statistics: Statistics, path: Path) -> Path:
    texts = {"kinds": {"noise": IDS.size}}
    CalibrationFile(IDS, model=statistics.model, statistics=statistics, texts=texts).save(path)
    return path


def weighted(source: Path, output: Path, data: Path, **options: object) -> Summary:
    workers = int(str(options.pop("workers", 1)))
    job = Job(Source.at(source), load("w4a16-g32-imatrix", options), output, workers=workers, calibration=data)
    summary = convert(prepare(job), Progress(), Ranks())
    assert summary is not None
    return summary


def changed(data: Path, path: Path, **what: object) -> Path:
    """A file with other statistics of the same form."""
    return written(replace(read_statistics(data), **what), path)


def test_threads_do_not_show_and_inputs_do(moe: Path, data: Path, tmp_path: Path) -> None:
    weighted(moe, tmp_path / "one" / "out", data)
    weighted(moe, tmp_path / "three" / "out", data, workers=3)
    assert hashes(tmp_path / "one" / "out") == hashes(tmp_path / "three" / "out")
    flat = {
        name: InputStatistics(np.ones_like(one.mean_square), one.tokens)
        for name, one in read_statistics(data).inputs.items()
    }
    weighted(moe, tmp_path / "flat" / "out", changed(data, tmp_path / "flat.safetensors", inputs=flat))
    own, other = stored(tmp_path / "one" / "out"), stored(tmp_path / "flat" / "out")
    scales = [name for name in own if name.endswith("_scale")]
    assert any(not own[name].equal(other[name]) for name in scales if "experts" in name)


def test_towers_are_rounded_without_data_and_named(moe: Path, data: Path, tmp_path: Path) -> None:
    summary = weighted(
        moe, tmp_path / "out", data, pack=["attention", "mlp", "experts", "vision_tower"], group_size="channel"
    )
    assert summary.calibration is not None
    assert summary.calibration["data_free"]
    assert all("vision_tower" in name for name in summary.calibration["data_free"])


def test_provenance_and_card_say_what_was_used(moe: Path, data: Path, tmp_path: Path) -> None:
    weighted(moe, tmp_path / "out", data)
    result = json.loads((tmp_path / "out" / "g4convert.json").read_text())["result"]
    found = read_statistics(data)
    assert result["method"] == "imatrix"
    assert result["calibration"]["tokens"] == found.tokens
    assert result["calibration"]["statistics"] == found.hash
    assert result["calibration"]["experts_without_tokens"] == found.experts_with(0)
    assert found.coverage is not None
    assert result["calibration"]["coverage"] == asdict(found.coverage)
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (found.hash, f"{found.coverage.experts:,} experts met ", "Ids by kind of text: noise 144."):
        assert said in card


def test_statistics_of_another_model_are_refused(moe: Path, data: Path, tmp_path: Path) -> None:
    model = read_statistics(data).model
    assert model is not None
    for change, words in (
        ({"config": "0" * 64}, "config.json: hash 000000000000, expected "),
        ({"tokenizer": ""}, "tokenizer.json: none, expected hash "),
        ({"weights": "0" * 16}, "weights: hash 000000000000, expected "),
        ({"dims": {**model.dims, "hidden_size": 99}}, "hidden_size: 99, expected "),
    ):
        path = changed(data, tmp_path / "other.safetensors", model=replace(model, **change))
        with pytest.raises(InputError, match="a calibration of another model than") as caught:
            weighted(moe, tmp_path / "out", path)
        assert [line.startswith(words) for line in caught.value.offenders] == [True], caught.value.offenders
    assert not list(tmp_path.glob("out*"))


def test_statistics_that_do_not_fit_are_named(moe: Path, data: Path, tmp_path: Path) -> None:
    inputs = dict(read_statistics(data).inputs)
    del inputs["layers.0.self_attn.o_proj"]
    first = inputs["layers.0.mlp.down_proj"]
    inputs["layers.0.mlp.down_proj"] = InputStatistics(first.mean_square[:-8], first.tokens)
    with pytest.raises(InputError) as caught:
        weighted(moe, tmp_path / "out", changed(data, tmp_path / "some.safetensors", inputs=inputs))
    named = " ".join(caught.value.offenders)
    assert "layers.0.self_attn.o_proj: missing" in named
    assert f"layers.0.mlp.down_proj: [{len(first.mean_square) - 8}], expected [{len(first.mean_square)}]" in named


def test_token_ids_alone_and_no_file_are_refused(moe: Path, tmp_path: Path) -> None:
    Tokens(IDS).save(tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match="token ids without statistics"):
        weighted(moe, tmp_path / "out", tmp_path / "ids.safetensors")
    with pytest.raises(InputError, match="no such file"):
        weighted(moe, tmp_path / "out", tmp_path / "absent.safetensors")


def test_a_source_on_a_lattice_keeps_its_codes(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, path = checkpoints("dense", qat=True), tmp_path / "cal.safetensors"
    written(record(source, Tokens(IDS), tmp_path / "scratch"), path)
    with pytest.raises(UsageError, match=r"method imatrix: 100\.0% of the source lies on the grid"):
        weighted(source, tmp_path / "out", path)


def test_a_complete_file_is_used_as_it_is(
    moe: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("g4convert.calibration.record.record")
    done = quantize(moe, tmp_path / "out", recipe="w4a16-g32-imatrix", calibration=data, verify=None)
    assert done.summary.calibration is not None
    assert done.summary.calibration["statistics"] == read_statistics(data).hash
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_the_command_alone_records_what_it_needs_and_verifies(moe: Path, tmp_path: Path) -> None:
    Tokens(IDS).save(tmp_path / "ids.safetensors")
    done = quantize(moe, tmp_path / "out", recipe="w4a16-g32-imatrix", calibration=tmp_path / "ids.safetensors")
    assert done.passed
    own = tmp_path / "out.calibration.safetensors"
    assert read_statistics(own).tokens == Tokens(IDS).hash
    with safe_open(own, "np") as file:
        assert np.array_equal(file.get_tensor("ids"), IDS)


def test_the_own_file_of_other_texts_is_not_replaced(moe: Path, data: Path, tmp_path: Path) -> None:
    """It was made from other texts, in minutes or hours, and was gone without a word."""
    ids, own = tmp_path / "ids.safetensors", tmp_path / "out.calibration.safetensors"
    Tokens(IDS[:4]).save(ids)
    shutil.copy(data, own)
    before = own.read_bytes()
    with pytest.raises(UsageError, match=r"out\.calibration\.safetensors: is there already, of other texts") as caught:
        quantize(moe, tmp_path / "out", recipe="w4a16-g32-imatrix", calibration=ids, verify=None)
    assert own.read_bytes() == before
    assert "--overwrite" in caught.value.hint
    other = replace(CalibrationFile.load(data).model, weights="others")
    CalibrationFile(IDS[:4], model=other).save(own)
    with pytest.raises(UsageError, match="or another model"):
        quantize(moe, tmp_path / "out", recipe="w4a16-g32-imatrix", calibration=ids, verify=None)
    quantize(moe, tmp_path / "out", recipe="w4a16-g32-imatrix", calibration=ids, verify=None, overwrite=True)
    assert read_statistics(own).tokens == Tokens(IDS[:4]).hash
