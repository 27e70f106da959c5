"""One writer for each output: the second is refused at once, and nobody's work is lost."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import hashes, job, run

from g4convert.conversion.job import prepare
from g4convert.conversion.lock import Lock
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.run import convert
from g4convert.errors import EnvironmentFault, G4Error, InputError, UsageError
from g4convert.progress import Progress

_SLOW = (
    "import sys, time; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
    "do = stream._UnitWorker.do\n"
    "def slow(self, unit):\n"
    "    time.sleep({seconds})\n"
    "    return do(self, unit)\n"
    "stream._UnitWorker.do = slow\n"
    "sys.argv = ['g4convert', 'quantize', {source!r}, '-o', {output!r}, '-q', '--workers', '1', '--verify', 'none', "
    "*{more!r}]\n"
    "cli.main()\n"
)


def started(source: Path, output: Path, *more: str, seconds: float = 0) -> "subprocess.Popen[str]":
    """The program in a process of its own, `seconds` slower at each unit."""
    code = _SLOW.format(seconds=seconds, source=str(source), output=str(output), more=more)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_a_second_run_is_refused_at_once_with_the_owner_named(tmp_path: Path) -> None:
    with Lock(tmp_path / "out.lock") as first, Lock(tmp_path / "out.lock") as second:
        first.take()
        owner = json.loads(first.path.read_text())
        with pytest.raises(EnvironmentFault, match="another run writes it") as caught:
            second.take()
        assert f"process {os.getpid()} on {owner['host']}, since {owner['since']}" in caught.value.message
        assert caught.value.exit_code == 5
        first.check()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_a_killed_run_left_is_taken(tmp_path: Path) -> None:
    for left in ('\x00{"pid": 4711, not JSON', "", "\0" * 99):
        (tmp_path / "out.lock").write_text(left)
        with Lock(tmp_path / "out.lock") as lock:
            lock.take()
            lock.check()


def test_a_lock_whose_file_is_gone_or_anothers_is_found(tmp_path: Path) -> None:
    with Lock(tmp_path / "out.lock") as lock:
        lock.take()
        lock.path.unlink()
        with pytest.raises(EnvironmentFault, match="another run"):
            lock.check()
        lock.path.write_text("{}")
        with pytest.raises(EnvironmentFault, match="another run"):
            lock.check()
    assert lock.path.exists()  # not ours to remove


def test_an_owner_that_removes_the_file_while_the_next_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked is a file without a name: the next one is made and locked instead."""
    path, taken = tmp_path / "out.lock", fcntl.flock
    path.write_text("")

    def removed_before(fd: int, operation: int) -> None:
        if path.stat().st_ino == os.fstat(fd).st_ino and not path.read_text():
            path.unlink()
            path.write_text('{"run": "another"}')
        taken(fd, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with Lock(path) as lock:
        lock.take()
        lock.check()


def test_a_link_is_no_lock_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("years")
    (tmp_path / "out.lock").symlink_to("precious")
    with pytest.raises(EnvironmentFault, match="cannot be made"), Lock(tmp_path / "out.lock") as lock:
        lock.take()
    assert (tmp_path / "precious").read_text() == "years"


@pytest.mark.parametrize("text", ["[[package]]\nversion = 1\n", '{"pid": 1}' + " " * 5000])
def test_a_file_of_somebody_is_no_lock_file(text: str, tmp_path: Path) -> None:
    """As uv.lock with `-o uv`: it was emptied, and deleted in the end."""
    (tmp_path / "out.lock").write_text(text)
    with pytest.raises(InputError, match="no lock of a run has this name"), Lock(tmp_path / "out.lock") as lock:
        lock.take()
    assert (tmp_path / "out.lock").read_text() == text


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_makes_a_file_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOLCK is NFS without a lock daemon, EOPNOTSUPP and ENOSYS are Lustre and FUSE."""

    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    with Lock(tmp_path / "out.lock") as first, Lock(tmp_path / "out.lock") as second:
        first.take()
        with pytest.raises(EnvironmentFault, match="process") as caught:
            second.take()
        assert f"delete {first.path}" in caught.value.hint
        first.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EPERM])
def test_a_lock_that_fails_is_told_and_leaves_no_file(
    code: int, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a server that does not answer: it may have locks, so no file stands in for one."""

    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(EnvironmentFault, match=rf"out\.lock: cannot be locked: {os.strerror(code)}"):
        run(moe, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.wide
def test_beside_a_run_the_same_command_is_refused_and_after_its_end_goes_on(moe: Path, tmp_path: Path) -> None:
    expected = run(moe, tmp_path / "expected" / "out")
    first = started(moe, tmp_path / "out", seconds=100)
    wait_for(tmp_path / "out.partial" / "journal.jsonl")
    for overwrite in (False, True):
        with pytest.raises(EnvironmentFault, match=f"another run writes it: process {first.pid} on"):
            run(moe, tmp_path / "out", overwrite=overwrite)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=100)
    assert (tmp_path / "out.lock").exists()
    assert run(moe, tmp_path / "out") == expected
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "out"}


class Meanwhile(Progress):
    """Does something once, while units are done."""

    def __init__(self, what: Callable[[], object]) -> None:
        self._left = [what]

    def advance(self, *_: object) -> None:
        """Do it."""
        if self._left:
            self._left.pop()()


def test_what_comes_to_lie_at_the_output_is_not_replaced(moe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def write() -> None:
        output.mkdir()
        (output / "thesis.tex").write_text("years")

    with pytest.raises(UsageError, match=": not empty"):
        convert(prepare(job(moe, output)), Meanwhile(write), Ranks())
    assert (output / "thesis.tex").read_text() == "years"
    shutil.rmtree(output)
    assert "config.json" in run(moe, output)


def test_a_directory_that_is_replaced_under_a_run_does_not_become_the_output(moe: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"

    def replace() -> None:
        partial.rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", partial)

    with pytest.raises(EnvironmentFault, match="moved or replaced"):
        convert(prepare(job(moe, tmp_path / "out")), Meanwhile(replace), Ranks())
    assert not (tmp_path / "out").exists()


def test_a_finished_output_is_seen_under_the_lock(moe: Path, tmp_path: Path) -> None:
    """Both looked before either wrote; the second took the lock when the first was done."""
    early = prepare(job(moe, tmp_path / "out"))
    expected = run(moe, tmp_path / "out")
    with pytest.raises(UsageError, match=": not empty"):
        convert(early, Progress(), Ranks())
    assert hashes(tmp_path / "out") == expected


def test_a_directory_that_no_run_made_is_not_removed(moe: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(G4Error, match=r"thesis\.tex"):
            run(moe, tmp_path / "out", overwrite=overwrite)
    assert (partial / "thesis.tex").read_text() == "years"
