"""Places of an output: a run writes, replaces and deletes nothing that it reads."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import hashes, job, run

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model
from g4convert.conversion.job import Job, prepare
from g4convert.errors import UsageError
from g4convert.planning.recipe_files import load


def test_the_output_may_not_lie_in_the_source(moe: Path) -> None:
    with pytest.raises(UsageError, match="lies in the source"):
        prepare(job(moe, moe / "out"))
    with pytest.raises(UsageError, match="is the source"):
        prepare(job(moe, moe))


def test_the_output_may_not_lie_in_the_source_by_another_name(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bind mount, which has the same inode: the output came to lie in the model."""
    monkeypatch.setattr(Path, "samefile", lambda one, other: one.name == other.name)
    with pytest.raises(UsageError, match="lies in the source"):
        prepare(job(moe, tmp_path / moe.name / "out"))


@pytest.mark.parametrize("name", ["out.partial", "out.replaced", "out.lock"])
def test_a_source_that_lies_where_a_run_deletes_is_refused(name: str, dense: Path, tmp_path: Path) -> None:
    """OUT.partial without a journal counted as one that was stopped before its first unit, and was removed."""
    source = shutil.copytree(dense, tmp_path / name)
    before = hashes(source)
    with pytest.raises(UsageError, match=f"{name}: is the source"):
        run(source, tmp_path / "out", overwrite=True)
    assert hashes(source) == before


@pytest.mark.parametrize("end", ["", ".partial", ".lock"])
def test_a_source_that_lies_where_the_calibration_file_is_made_is_refused(
    end: str, dense: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(dense, tmp_path / f"out.calibration.safetensors{end}" / "models" / "one")
    with pytest.raises(UsageError, match="lies in the source, or the source in it"):
        prepare(job(source, tmp_path / "out", overwrite=True, method="imatrix"))
    assert prepare(job(source, tmp_path / "out", method="mse"))


@pytest.mark.parametrize("place", ["out", "out.partial", "out.replaced"])
def test_a_source_of_links_into_the_old_output_is_refused(place: str, dense: Path, tmp_path: Path) -> None:
    """The old output is deleted once the new one is in place, and the weights went with it."""
    source, old = shutil.copytree(dense, tmp_path / "source"), shutil.copytree(dense, tmp_path / place)
    shard = min(source.glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(old / shard.name)
    with pytest.raises(UsageError, match=f"{shard.name}: lies in .*{place}, which the run would replace or delete"):
        prepare(job(source, tmp_path / "out", overwrite=True))


@pytest.mark.parametrize("read", ["ids.safetensors", "mine.yaml", "base.yaml"])
def test_what_else_is_read_may_not_lie_in_the_old_output(read: str, dense: Path, tmp_path: Path) -> None:
    """A calibration file, a recipe, and a recipe that it extends were gone after a run that had read them."""
    old, apart = shutil.copytree(dense, tmp_path / "out"), tmp_path / "apart"
    apart.mkdir()

    def place(name: str) -> Path:
        return (old if name == read else apart) / name

    ids = np.ones((2, 16), np.int32)
    CalibrationFile(ids, model=Model.of(Checkpoint.open(dense)), texts={"kinds": {"noise": 32}}).save(
        place("ids.safetensors")
    )
    place("base.yaml").write_text("method: gptq\n")
    place("mine.yaml").write_text(f"extends: {place('base.yaml')}\ngroup_size: 32\n")
    asked = Job(
        Source.at(dense),
        load(str(place("mine.yaml"))),
        tmp_path / "out",
        overwrite=True,
        calibration=place("ids.safetensors"),
    )
    with pytest.raises(UsageError, match=f"{read}: lies in .*out, which the run would replace or delete"):
        prepare(asked)


def test_the_own_calibration_file_may_be_named(dense: Path, tmp_path: Path) -> None:
    own, ids = tmp_path / "out.calibration.safetensors", np.ones((2, 16), np.int32)
    CalibrationFile(ids, model=Model.of(Checkpoint.open(dense)), texts={"kinds": {"noise": 32}}).save(own)
    assert prepare(Job(Source.at(dense), load("w4a16-g32-imatrix"), tmp_path / "out", calibration=own))
