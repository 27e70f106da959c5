"""Exceptions that nobody expected: exit 70, one line, and a file with the traceback; also while an error is told."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.grids import two_when_quick
from helpers.program import Program, g4convert

__all__ = ["g4convert"]  # a fixture


def test_a_crash_is_no_verdict(g4convert: Program, moe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault\nerror: forged")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("g4convert.planning.report.lay_out", broken)
    ran = g4convert("plan", moe)
    assert ran.status == 70
    lines = ran.err.splitlines()
    assert lines[0] == r"error: unexpected ZeroDivisionError: a fault\nerror: forged"
    (written,) = tmp_path.glob("g4convert-crash-*.txt")
    assert str(written) in lines[1]
    assert "in broken" in written.read_text()


def test_a_crash_that_cannot_be_written_down_is_told(
    g4convert: Program, moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("g4convert.cli.crashes.NamedTemporaryFile", refuse)
    monkeypatch.setattr("g4convert.planning.report.lay_out", lambda _: 1 / 0)
    ran = g4convert("plan", moe)
    assert ran.status == 70
    assert "could not be written either: No space left on device" in ran.err


CRASHING = {
    "the module that prints cannot be loaded": ("raise OSError('of somebody')", 70, "unexpected OSError: of somebody"),
    "words that move the cursor": (r"raise ValueError('\x1b[2J')", 70, r"unexpected ValueError: \x1b[2J"),
    "an error without words": (
        "raise type('Mute', (Exception,), {'__str__': lambda _: 1 / 0})",
        70,
        "unexpected Mute: <exception str() failed>",
    ),
    "no memory": ("raise MemoryError", 5, "out of memory"),
    "no package": (
        "import a_package_that_is_not_there",
        5,
        "a package cannot be loaded: No module named 'a_package_th",
    ),
}


@pytest.mark.parametrize("case", two_when_quick(CRASHING))
def test_a_crash_while_an_error_is_told_is_no_verdict(case: str, tmp_path: Path) -> None:
    code, status, message = CRASHING[case]
    (tmp_path / "rich.py").write_text(code)  # what errors are printed with
    ran = subprocess.run(
        [sys.executable, "-m", "g4convert", "plan", "nothing"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    error, *hint = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (status, "")
    assert error.startswith(f"error: {message}")
    written = [str(path) for path in tmp_path.glob("g4convert-crash-*.txt")]
    expected = [f"hint: a fault of g4convert: please report it with the traceback in {path}" for path in written]
    assert (hint, len(written)) == (expected, int(status == 70))
    assert all("no such directory" in Path(path).read_text() for path in written), "the error that was told"


@pytest.mark.wide
@pytest.mark.parametrize(("stderr", "place"), [("2>&-", "."), ("2>/dev/full", "."), ("", "/nowhere")])
def test_a_crash_that_cannot_be_told_has_its_exit_code(stderr: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise OSError('of somebody')")
    line = f"TMPDIR={place} {shlex.quote(sys.executable)} -m g4convert plan nothing {stderr}"
    ran = subprocess.run(["/bin/bash", "-c", line], cwd=tmp_path, check=False, timeout=60)
    assert ran.returncode == 70
