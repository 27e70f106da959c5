"""Nothing of somebody's is lost by `calibrate`: its directory, what it read, and what it had counted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from g4convert.api.calibrate import calibrate
from g4convert.api.quantize import quantize
from g4convert.calibration import kept, run, scales
from g4convert.calibration.kept import UnfinishedRecording
from g4convert.calibration.record import record
from g4convert.calibration.run import LayerByLayer
from g4convert.calibration.states import States
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.lock import Lock
from g4convert.errors import InputError, Interrupted, UsageError
from g4convert.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Checkpoints

SHORT: dict[str, Any] = {"samples": 4, "length": 32, "answers": False}
SAVE = CalibrationFile.save
IDS = np.random.default_rng(0).integers(5, 250, (4, 24), dtype=np.int32)


class Killed(BaseException):
    """Stands for a kill: no code of ours handles it."""


def die(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def source(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints("text"), tmp_path / "source")


def replaced(source: Path) -> None:
    """Rename other weights over the first file, of the same header and size."""
    path = min(source.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    begin = int.from_bytes(data[:8], "little") + 8
    data[begin:] = bytes(byte ^ 1 for byte in data[begin:])
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    fresh.rename(path)


def notes(directory: Path) -> None:
    (directory / "notes.txt").write_text("precious")


def nested(directory: Path) -> None:
    (directory / "states" / "states").mkdir(parents=True)
    (directory / "states" / "states" / "hidden-0.f32").write_text("precious")


def a_model(directory: Path) -> None:
    (directory / "model.safetensors").write_text("precious")


def a_link(directory: Path) -> None:
    (directory.parent / "elsewhere.txt").write_text("precious")
    (directory / "states").mkdir()
    (directory / "states" / "hidden-0.f32").symlink_to(directory.parent / "elsewhere.txt")


def another_name(directory: Path) -> None:
    (directory.parent / "elsewhere.txt").write_text("precious")
    (directory / "ids.safetensors").hardlink_to(directory.parent / "elsewhere.txt")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("put", [notes, nested, a_model, a_link, another_name])
def test_a_directory_of_somebody_is_refused_and_stays(
    put: Callable[[Path], None], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    path, partial = tmp_path / "c.safetensors", tmp_path / "c.safetensors.partial"
    partial.mkdir()
    put(partial)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"c\.safetensors\.partial: holds 1 files that no recording wrote") as caught:
        calibrate(checkpoints("text"), path, **SHORT)
    assert caught.value.hint == "move it away"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [lambda path: path.write_text("precious"), lambda path: path.symlink_to(path.parent)])
def test_what_is_no_directory_is_refused_and_stays(
    make: Callable[[Path], object], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    make(tmp_path / "c.safetensors.partial")
    with pytest.raises(InputError, match="is no directory that a recording made"):
        calibrate(checkpoints("text"), tmp_path / "c.safetensors", **SHORT)
    assert [one.name for one in tmp_path.iterdir()] == ["c.safetensors.partial"]


def test_a_model_that_has_the_directory_s_name_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoints("text"), tmp_path / "q.safetensors.partial")
    before = contents(source)
    with pytest.raises(UsageError, match="is another file of this command"):
        calibrate(source, tmp_path / "q.safetensors", **SHORT)
    assert contents(source) == before


def test_what_is_put_there_meanwhile_stays(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save = CalibrationFile.save

    def saved(self: CalibrationFile, place: Path, **how: Any) -> None:  # noqa: ANN401 -- as it is called
        save(self, place, **how)
        if place == path:
            notes(kept.partial_of(path))

    monkeypatch.setattr(CalibrationFile, "save", saved)
    calibrate(checkpoints("text"), path, **SHORT)
    assert [one.name for one in kept.partial_of(path).iterdir()] == ["notes.txt"]


def test_arrays_are_not_written_behind_links(tmp_path: Path) -> None:
    states, other = States(tmp_path / "states"), tmp_path / "other"
    states.directory.mkdir()
    other.write_bytes(bytes(4))
    (states.directory / "hidden-0.f32").symlink_to(other)
    with pytest.raises(OSError, match="hidden-0"):
        states.make("hidden-0", (2,))
    with pytest.raises(InputError, match="not what an earlier run left there"):
        states.open("hidden-0", (1,))
    assert other.read_bytes() == bytes(4)


def test_killed_before_the_file_is_written_it_repeats_no_layer(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    calibrate(checkpoints("text"), tmp_path / "whole.safetensors", **SHORT)
    with monkeypatch.context() as now:
        now.setattr(CalibrationFile, "save", lambda self, place, **_: die() if self.statistics else SAVE(self, place))
        with pytest.raises(Killed):
            calibrate(checkpoints("text"), path, **SHORT)
    monkeypatch.setattr("g4convert.calibration.record.Counted", None)  # runs no layer
    calibrate(checkpoints("text"), path, **SHORT)
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.safetensors", "whole.safetensors"]


def test_killed_before_the_statistics_of_given_ids_are_written_it_repeats_no_layer(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, model = tmp_path / "ids.safetensors", checkpoints("text")
    calibrate(model, ids, **SHORT, statistics=False)
    how: dict[str, Any] = {"recipe": "w4a16-g32-imatrix", "calibration": ids, "verify": None}
    with monkeypatch.context() as now:
        now.setattr(CalibrationFile, "save", die)
        with pytest.raises(Killed):
            quantize(model, tmp_path / "out", **how)
    monkeypatch.setattr("g4convert.calibration.record.Counted", None)
    with monkeypatch.context() as now:
        now.setattr("g4convert.calibration.kept.drop", die)
        with pytest.raises(Killed):  # once more, behind the writing
            quantize(model, tmp_path / "out", **how)
    names = {"ids.safetensors", "out.calibration.safetensors"}
    assert {one.name for one in tmp_path.iterdir()} == names | {"out.calibration.safetensors.partial"}
    quantize(model, tmp_path / "out", **how)
    assert {one.name for one in tmp_path.iterdir()} == {*names, "out"}


def test_killed_behind_the_file_s_writing_the_same_call_cleans_up(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "c.safetensors", list[int]()

    def last(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Killed

    with monkeypatch.context() as now:
        now.setattr(Lock, "release", lambda *_: None)
        now.setattr(kept.Begun, "drop", last)
        with pytest.raises(Killed):
            calibrate(checkpoints("text"), path, **SHORT)
    left = {"c.safetensors", "c.safetensors.lock", "c.safetensors.partial"}
    assert {one.name for one in tmp_path.iterdir()} == left
    with Lock.beside(path) as other:
        (tmp_path / "c.safetensors.lock").unlink()  # this process still has it, as no killed one has
        other.take()
        assert calibrate(checkpoints("text"), path, **SHORT).already_done, "another run is at work"
        assert {one.name for one in tmp_path.iterdir()} == left
    assert calibrate(checkpoints("text"), path, **SHORT).already_done
    assert {one.name for one in tmp_path.iterdir()} == {"c.safetensors"}


def test_an_unfinished_recording_of_another_request_is_not_cleaned_up(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibrate(checkpoints("text"), path, **SHORT)

    class Stopping(Progress):
        def tick(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        calibrate(checkpoints("text"), path, seed=1, overwrite=True, progress=Stopping(), **SHORT)
    before = contents(tmp_path)
    assert calibrate(checkpoints("text"), path, **SHORT).already_done
    assert contents(tmp_path) == before


def test_a_model_replaced_during_a_recording_is_refused_and_nothing_of_it_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first one comes back: no stage of both is there to continue."""
    first, keep = shutil.copytree(source, tmp_path / "first"), UnfinishedRecording.keep
    whole = record(source, Tokens(IDS), tmp_path / "whole")

    def kept_and_replaced(self: UnfinishedRecording, stage: int, *rest: Any) -> None:  # noqa: ANN401 -- whatever it is given
        keep(self, stage, *rest)
        if stage == 1:
            replaced(source)

    with monkeypatch.context() as now:
        now.setattr(UnfinishedRecording, "keep", kept_and_replaced)
        with pytest.raises(InputError, match="changed while it was read") as caught:
            record(source, Tokens(IDS), tmp_path / "scratch")
    assert caught.value.offenders == (min(source.glob("*.safetensors")).name,)
    assert record(first, Tokens(IDS), tmp_path / "scratch").hash == whole.hash


@pytest.mark.parametrize("at", ["the answers", "the layers"])
def test_a_model_replaced_during_calibrate_is_refused(
    at: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "check_room" if at == "the answers" else "record"
    there = getattr(__import__("g4convert.api.calibrate", fromlist=[name]), name)

    def first(*args: Any, **how: Any) -> Any:  # noqa: ANN401 -- stands for any function
        replaced(source)
        return there(*args, **how)

    monkeypatch.setattr(f"g4convert.api.calibrate.{name}", first)
    with pytest.raises(InputError, match="changed while it was read"):
        calibrate(source, tmp_path / "c.safetensors", **SHORT)
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("before", ["the first layer", "the last layer"])
def test_a_model_replaced_during_gptq_is_refused_before_a_layer_of_both_is_journaled(
    before: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tmp_path / "ids.safetensors"
    Tokens(IDS).save(ids)
    layer, open_, numbers = LayerByLayer._layer, run.Replay.open, list[int]()  # noqa: SLF001 -- a test's

    def swapped(self: LayerByLayer, number: int, *rest: Any) -> list[Any]:  # noqa: ANN401 -- whatever it is given
        numbers.append(number)
        if before == "the last layer" and number == 2:
            replaced(source)
        return layer(self, number, *rest)

    def opened(*args: Any) -> Any:  # noqa: ANN401
        if before == "the first layer":
            replaced(source)
        return open_(*args)

    monkeypatch.setattr(LayerByLayer, "_layer", swapped)
    monkeypatch.setattr(run.Replay, "open", opened)
    with pytest.raises(InputError, match="changed while it was read"):
        quantize(source, tmp_path / "out", recipe="w4a16-g32-gptq", calibration=ids, verify=None)
    assert numbers == ([0] if before == "the first layer" else [0, 1, 2])
    assert not (tmp_path / "out").exists()


def test_a_source_whose_directory_moved_meanwhile_is_the_same(source: Path, tmp_path: Path) -> None:
    class Moving(Progress):
        def advance(self, *_: object) -> None:
            if source.exists():
                source.rename(tmp_path / "moved")

    quantize(source, tmp_path / "out", verify=None, progress=Moving())
    assert (tmp_path / "out").exists()


def test_a_file_that_came_meanwhile_stays(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    monkeypatch.setattr(Lock, "check", lambda *_: path.write_text("precious"))
    with pytest.raises(UsageError, match="is there already"):
        calibrate(checkpoints("text"), path, **SHORT)
    assert path.read_text() == "precious"
    calibrate(checkpoints("text"), path, overwrite=True, **SHORT)
    assert CalibrationFile.load(path).statistics is not None


def test_a_model_replaced_before_it_answers_teaches_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, load = tmp_path / "ids.safetensors", scales.load
    Tokens(np.concatenate([IDS, IDS])).save(ids)

    def loaded(*args: Any, **how: Any) -> Any:  # noqa: ANN401 -- stands for any function
        replaced(source)
        return load(*args, **how)

    monkeypatch.setattr(scales, "load", loaded)
    monkeypatch.setattr(scales.SoftTargets, "make", lambda *_: pytest.fail("of another model"))
    with pytest.raises(InputError, match="changed while it was read"):
        quantize(source, tmp_path / "out", recipe="w4a16-g32-best", calibration=ids, verify=None)
    assert not (tmp_path / "out").exists()
