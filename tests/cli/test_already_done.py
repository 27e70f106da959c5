"""An output that is there already is held to what any other is: engines, the calibration file, the device."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.program import Program, g4convert

from g4convert import quantize
from g4convert.api.calibrate import calibrate
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

__all__ = ["g4convert"]  # a fixture

IDS = np.random.default_rng(0).integers(5, 250, (4, 24), dtype=np.int32)
GPTQ, IMATRIX = ("-r", "w4a16-g32-gptq"), ("-r", "w4a16-g32-imatrix")


def quick(source: Path, out: object, *more: object) -> tuple[object, ...]:
    return "quantize", source, "-o", out, "--verify", "none", *more


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Token ids alone, of no model."""
    Tokens(IDS).save(tmp_path / "ids.safetensors")
    return tmp_path / "ids.safetensors"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Token ids of a model that there is not."""
    model = Model({"hidden_size": 99}, "", "", "")
    CalibrationFile(IDS, model=model).save(tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def test_engines_must_load_what_is_there_already(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    """A CI job that asks for four GPUs was told that all is well, as an earlier one had asked for one."""
    command = quick(moe, tmp_path / "out", "--engine", "vllm")
    assert g4convert(*command).status == 0
    first = g4convert(*quick(moe, tmp_path / "new", "--engine", "vllm", "--tp", 4))
    again = g4convert(*command, "--tp", 4)
    assert (first.status, again.status) == (1, 1)
    assert again.err == first.err
    assert "already done" not in again.out


def test_the_calibration_file_of_what_is_there_must_exist(
    dense: Path, ids: Path, other: Path, g4convert: Program, tmp_path: Path
) -> None:
    command = quick(dense, tmp_path / "out", *GPTQ, "--calibration")
    assert g4convert(*command, ids).status == 0
    assert g4convert(*command, ids).out.startswith("already done: ")
    ran = g4convert(*command, tmp_path / "typo.safetensors")
    assert (ran.status, ran.err.splitlines()[0]) == (3, f"error: {tmp_path}/typo.safetensors: no such file")
    assert g4convert(*command, other).status == 3


def test_a_dry_run_refuses_the_calibration_file_that_the_run_refuses(
    moe: Path, ids: Path, other: Path, g4convert: Program, tmp_path: Path
) -> None:
    for recipe in (GPTQ, IMATRIX):
        command = quick(moe, tmp_path / "out", *recipe, "--dry-run", "--calibration")
        assert g4convert(*command, tmp_path / "typo.safetensors").status == 3
        ran = g4convert(*command, other)
        assert (ran.status, "a calibration of another model than" in ran.err) == (3, True)
        assert g4convert(*command, ids).status == 0  # `imatrix` adds the statistics that it needs
        assert g4convert(*command[:-1]).status == 0  # as the output's own is made by the run


def test_python_and_a_dry_run_know_what_is_there_already(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    """They said that it was of another source or calibration, or by another version."""
    out = tmp_path / "out"
    first, again = (quantize(moe, out, verify=level) for level in (None, "static"))
    assert (first.already_done, again.already_done, again.passed) == (False, True, True)
    assert first.summary is not None
    assert again.summary is None
    assert again.report is not None
    assert again.to_dict() == {
        "schema_version": 1,
        "output": str(out),
        "already_done": True,
        "verify": again.report.to_dict(),
    }
    assert (again.source, again.refused, again.costs) == (first.source, first.refused, first.costs)
    assert repr(again) == f"Quantized({str(out)!r}, already done, pass)"
    dry = g4convert(*quick(moe, out, "--dry-run"))
    assert (dry.status, dry.out.startswith("already done: "), "verifying" in dry.out) == (0, True, False)
    assert json.loads(g4convert(*quick(moe, out, "--dry-run", "--json")).out)["output"]["files"] == 1


def test_what_packs_nothing_needs_no_calibration(
    checkpoints: Checkpoints, ids: Path, g4convert: Program, tmp_path: Path
) -> None:
    """The refusal named an option that nobody had given, and as remedy the recipe that was given."""
    command = quick(checkpoints("assistant"), tmp_path / "out")
    told = "nothing is packed, so there is nothing to calibrate"
    ran = g4convert(*command, *GPTQ)
    assert (ran.status, ran.err) == (2, f"error: method gptq: {told}\nhint: --method mse\n")
    ran = g4convert(*command, "--calibration", ids)
    assert (ran.status, ran.err) == (2, f"error: --calibration: {told}\nhint: leave it out, with --method mse\n")
    assert g4convert(*command, *GPTQ, "--method", "mse").status == 0


def test_the_reason_against_another_output_is_the_one(
    moe: Path, dense: Path, g4convert: Program, tmp_path: Path
) -> None:
    out, held = tmp_path / "out", f"not empty: it holds a conversion of {dense.name} by recipe w4a16-g32"
    assert g4convert(*quick(dense, out)).status == 0
    assert f"{held} (of another source, or before it changed)" in g4convert(*quick(moe, out)).err
    (path,), (weights,) = out.glob("g4convert.json"), out.glob("*.safetensors")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"g4convert": "0.0.9"}))
    assert f"{held} (by version 0.0.9)" in g4convert(*quick(dense, out)).err
    path.write_text(json.dumps(document))
    weights.unlink()
    ran = g4convert(*quick(dense, out))
    assert (ran.status, f"{held} (not whole)" in ran.err) == (2, True)


def test_a_source_that_was_trained_further_in_its_place_is_another(
    dense: Path, g4convert: Program, tmp_path: Path
) -> None:
    """Names, sizes and headers are the same; a record that has no sample yet says as little as it did."""
    source, out = shutil.copytree(dense, tmp_path / "source"), tmp_path / "out"
    command = quick(source, out)
    assert g4convert(*command).status == 0
    shard, record = min(source.glob("*.safetensors")), out / "g4convert.json"
    data = shard.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    shard.write_bytes(data[:begin] + bytes(byte ^ 1 for byte in data[begin:]))
    ran = g4convert(*command)
    assert ran.status == 2
    assert f"a conversion of {source.name} by recipe w4a16-g32 (of another source, or before it changed)" in ran.err
    document = json.loads(record.read_text())
    del document["source"]["sample"]
    record.write_text(json.dumps(document))
    assert g4convert(*command).out.startswith("already done: ")
    assert g4convert(*quick(dense, out, "--overwrite")).status == 0


@pytest.mark.parametrize("output", [".", "/"])
def test_no_output_is_in_the_way_of_its_own_calibration_file(
    output: str, dense: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path without a name has no path beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert g4convert(*quick(dense, output, *GPTQ)).status == 2


def test_the_calibration_file_of_an_output_that_is_replaced_is_made_again(
    text: Path, other: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is beside the output under its name, and of the model that the output was of before."""
    few = partial(calibrate, samples=4, length=32)
    monkeypatch.setattr("g4convert.api.calibrate.calibrate", few)
    own = other.rename(tmp_path / "out.calibration.safetensors")
    command = quick(text, tmp_path / "out", *GPTQ)
    ran = g4convert(*command)
    assert ran.status == 3
    assert ran.err.endswith("\nhint: --overwrite makes it again\n")
    assert g4convert(*command, "--overwrite").status == 0
    made = CalibrationFile.load(own)
    assert (made.ids.shape, made.model) == ((4, 32), Model.of(Checkpoint.open(text)))
