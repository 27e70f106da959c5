"""Hints about a machine, followed: permissions, disks, mounts, and what changed or stopped in the middle of a run."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from helpers.program import Program, g4convert
from helpers.rights import permissions_count

from g4convert import places
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion import run, stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Checkpoints, Packed

__all__ = ["g4convert"]  # a fixture

QUICK = ("--method", "minmax", "--verify", "none", "-q")


def hint_of(ran: Any) -> str:  # noqa: ANN401 -- Ran
    assert ran.status in {2, 3, 5, 75}, ran.err
    return str(ran.err.partition("hint: ")[2].strip())


@pytest.mark.parametrize("name", ["", "sub", "model.safetensors.index.json", "config.json"])
def test_permissions_of_what_is_read(name: str, dense: Path, tmp_path: Path, g4convert: Program) -> None:
    hint = "check the file's owner and permissions" if "." in name else "check its permissions"
    source = tmp_path / "source"
    shutil.copytree(dense, source)
    (source / "sub").mkdir()
    path = source / name
    path.chmod(0 if name else 0o300)  # a directory that may be entered, and not listed
    with permissions_count():
        assert hint_of(g4convert("plan", source)) == hint
        path.chmod(0o700)
        ran = g4convert("plan", source)
    assert ran.status == 0, ran.err


def test_a_place_that_may_not_be_written(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    """The directory's permissions are mended, or another one is named."""
    (tmp_path / "closed").mkdir(mode=0o500)
    with permissions_count():
        refused = g4convert("quantize", dense, "-o", tmp_path / "closed" / "out", *QUICK)
        assert hint_of(refused) == "look at the permissions there, and at the umask"
        (tmp_path / "closed").chmod(0o700)
        assert g4convert("quantize", dense, "-o", tmp_path / "closed" / "out", *QUICK).status == 0
        assert not list((tmp_path / "closed").glob("*.partial"))


def test_a_mount_point_gets_a_directory(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "mounts").write_text(f"1 2 0:1 / {tmp_path / 'volume'} rw - ext4 /dev/sda rw\n")
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "mounts")
    refused = g4convert("quantize", dense, "-o", tmp_path / "volume", *QUICK)
    assert hint_of(refused) == "give -o a directory in the mount"
    assert g4convert("quantize", dense, "-o", tmp_path / "volume" / "out", *QUICK).status == 0


def shortened(source: Path) -> None:
    """Leave the headers alone."""
    for path in source.glob("*.safetensors"):
        os.truncate(path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def emptied(source: Path) -> None:
    """Leave the headers and sizes alone."""
    for path in source.glob("*.safetensors"):
        size = path.stat().st_size
        os.truncate(path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))
        os.truncate(path, size)


AGAIN = "start again when nothing writes it"
DISTURBED = {
    "cut before tiles are read": ("moe", run, "run_units", shortened),
    "cut before it is copied": ("text", run, "run_units", shortened),
    "cut before tensors are compared": ("dense", run, "check_drops", shortened),
    "written at the end": ("dense", run, "check_unchanged", emptied),
}
"""Disturbance -> family, and the function before which it comes."""


@pytest.mark.parametrize("case", DISTURBED)
def test_a_source_that_changed_is_read_again(
    case: str, checkpoints: Checkpoints, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, module, function, change = DISTURBED[case]
    sound, source = checkpoints(family), tmp_path / "source"
    shutil.copytree(sound, source)
    command = ("quantize", source, "-o", tmp_path / "out", *QUICK)
    with monkeypatch.context() as now:
        now.setattr(module, function, after(change, source, getattr(module, function)))
        assert hint_of(g4convert(*command)) == AGAIN
    shutil.copytree(sound, source, dirs_exist_ok=True)
    assert g4convert(*command).status == 0


def test_a_checkpoint_that_changed_is_checked_again(
    packed: Packed, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(packed("dense"), out)
    with monkeypatch.context() as now:
        now.setattr(Checkpoint, "read_many", after(shortened, out, Checkpoint.read_many))
        assert hint_of(g4convert("check", out)) == AGAIN
    shutil.copytree(packed("dense"), out, dirs_exist_ok=True)
    assert g4convert("check", out).status == 0


def after(change: Callable[[Path], None], directory: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that changes a directory, and then does what it did."""

    def changed(*given: Any, **named: Any) -> Any:  # noqa: ANN401 -- handed on
        change(directory)
        return call(*given, **named)

    return changed


def test_a_run_that_was_stopped_continues(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("quantize", dense, "-o", tmp_path / "out", "--method", "minmax", "--verify", "none")
    real, stopped = stream.wait, []

    def stopping(*given: Any) -> Any:  # noqa: ANN401 -- handed on
        if not stopped:
            stopped.append(real(given[0]))
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as now:
        now.setattr(stream, "wait", stopping)
        ran = g4convert(*command)
    assert (ran.status, "stopped; finished work is kept" in ran.err) == (75, True)
    begin, _, again = hint_of(ran).partition(": ")
    assert (begin, shlex.split(again)) == ("continue with", ["g4convert", *map(str, command)])
    assert (tmp_path / "out.partial").is_dir()
    assert g4convert(*shlex.split(again)[1:]).status == 0
    assert not (tmp_path / "out.partial").exists()
