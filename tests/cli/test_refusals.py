"""Commands that the operating system refuses something: exit 5, one line with the file, one hint, nothing is left."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.program import Program, Ran, brief, g4convert

from g4convert.refusals import refusal, refusal_within

__all__ = ["brief", "g4convert"]  # fixtures


@contextmanager
def limited(which: int, most: int) -> Iterator[None]:
    """Lower a limit of this process for a while, without bytecode: Python 3.11 would cut it, and read it later."""
    before, writes = resource.getrlimit(which), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(which, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)
        sys.dont_write_bytecode = writes


def check_refused(ran: Ran, says: str, hint: str, status: int = 5) -> None:
    error, remedy = ran.err.splitlines()
    assert ran.status == status
    assert error.startswith("error: ")
    assert says in error
    assert remedy == f"hint: {hint}"


TOO_LARGE = {
    "quantize": "quantize MODEL -o HERE/out -q --verify none",
    "quantize, layer by layer": "quantize MODEL -o HERE/out -q --verify none -r w4a16-g32-gptq",
    "verify": "verify MODEL --reference MODEL --level static --html HERE/a.html -q",
    "reference": "reference MODEL -o HERE/r.safetensors -q",
    "demo": "demo HERE --family dense -q",
}


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_file_larger_than_the_limit(case: str, dense: Path, tmp_path: Path, g4convert: Program) -> None:
    """By the kernel (EFBIG): the limit is one for a process."""
    command = TOO_LARGE[case].replace("MODEL", str(dense)).replace("HERE", str(tmp_path))
    with limited(resource.RLIMIT_FSIZE, 6_000):
        ran = g4convert(*command.split())
    check_refused(ran, "File too large", "raise the limit of a file's size: ulimit -f")
    assert [path.name for path in tmp_path.rglob("*") if path.name != "out.calibration.safetensors"] == []


UNREADABLE = (
    "plan MODEL -r FILE.yaml",
    "recipe check FILE.yaml",
    "verify MODEL --reference MODEL --profile FILE.yaml",
    "verify MODEL --reference MODEL --prompts FILE.jsonl",
    "calibrate MODEL -o FILE.c.safetensors --data FILE.jsonl",
    "quantize MODEL -o FILE.out --calibration FILE.safetensors -r w4a16-g32-gptq",
)


@pytest.mark.parametrize("words", UNREADABLE)
def test_a_file_that_may_not_be_read_is_bad_input(
    words: str, dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *rest: Any, **named: Any) -> Any:  # noqa: ANN401 -- arguments of Path.open
        if path.stem == "mine":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **named)

    for ending in ("yaml", "jsonl", "safetensors"):
        (tmp_path / f"mine.{ending}").touch()
    system = os.open

    def refuse_too(path: Any, *rest: Any, **named: Any) -> int:  # noqa: ANN401 -- arguments of os.open
        if Path(path).name == "mine.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system(path, *rest, **named)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "open", refuse_too)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK or "mine" not in str(path))
    ran = g4convert(*words.replace("MODEL", str(dense)).replace("FILE", str(tmp_path / "mine")).split())
    assert (ran.status, "cannot be read: permission denied\n" in ran.err) == (3, True), ran.err
    assert "\nhint: check the file's owner and permissions\n" in ran.err


def test_more_files_than_the_limit(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    lowest = os.dup(0)
    os.close(lowest)
    with limited(resource.RLIMIT_NOFILE, lowest + 2):
        ran = g4convert("quantize", dense, "-o", tmp_path / "out", "-q", "--verify", "none")
    check_refused(ran, "Too many open files", "raise the limit of open files: ulimit -n")
    assert not list(tmp_path.iterdir())


def failing(code: int) -> Callable[..., None]:
    """Make a call that always fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "write to another disk",
    errno.EBUSY: "another program or a mount uses it: name another place, or free it",
    errno.ENOTEMPTY: "another program writes there: stop it, then give the command again",
    errno.EIO: "the disk or the connection to it failed: see the system's log; then try again",
}


@pytest.mark.parametrize("code", HINTS)
def test_a_report_that_cannot_be_written(
    code: int, dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", failing(code))
    ran = g4convert("verify", dense, "--level", "static", "--junit", tmp_path / "r.xml")
    assert "static.quantized" in ran.out, "the verdict is told all the same"
    *_, error, hint = ran.err.splitlines()
    assert (ran.status, error, hint) == (5, f"error: {tmp_path / 'r.xml'}: {os.strerror(code)}", f"hint: {HINTS[code]}")
    assert not list(tmp_path.iterdir())


UNWRITABLE = {
    "verify": "verify MODEL --reference MODEL --html HERE/a.html",
    "reference": "reference MODEL -o HERE/r.safetensors",
    "calibrate": "calibrate MODEL -o HERE/c.safetensors",
    "fit": "fit MODEL -o HERE/f.yaml --target-bits 5",
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_place_that_cannot_be_written_is_found_before_any_work(
    case: str, dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only disk was found after the model had run."""
    kernel = os.open

    def refused(path: str | Path, flags: int, *mode: int) -> int:
        if tmp_path in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return kernel(path, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr("g4convert.checkpoint.directory.Checkpoint.open", failing(errno.EDEADLK))
    ran = g4convert(*UNWRITABLE[case].replace("MODEL", str(dense)).replace("HERE", str(tmp_path)).split())
    check_refused(ran, "Read-only file system", "write to another disk")
    assert not list(tmp_path.iterdir())


BELOW = {
    "quantize": "quantize MODEL -o HERE/x --verify none -q",
    "quantize, deeper": "quantize MODEL -o HERE/x/y --verify none -q",
    "quantize, a directory of devices": "quantize MODEL -o /dev/full/x --verify none -q",
    "quantize, layer by layer": "quantize MODEL -o HERE/x -r w4a16-g32-gptq -q",
    "verify": "verify MODEL --reference MODEL --html HERE/a.html",
    "verify, JUnit": "verify MODEL --reference MODEL --junit HERE/deep/a.xml",
    "reference": "reference MODEL -o HERE/r.safetensors",
    "calibrate": "calibrate MODEL -o HERE/c.safetensors",
    "fit": "fit MODEL -o HERE/f.yaml --target-bits 5",
    "fit, a plot": "fit MODEL -o f.yaml --target-bits 5 --plot HERE/f.svg",
    "fit, losses": "fit MODEL -o f.yaml --target-bits 5 --sensitivities HERE/f.json",
    "demo": "demo HERE/x",
}


@pytest.mark.parametrize("case", BELOW)
def test_a_place_below_a_file_is_refused_in_words(
    case: str, dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to "exist", or that no file can be written there; the same name in a directory is taken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    words = BELOW[case].replace("MODEL", str(dense))
    ran = g4convert(*words.replace("HERE", "file").split())
    check_refused(ran, " is not a directory", "name a place in a directory", 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["file", "folder"]
    if "none" in words:
        assert g4convert(*words.replace("/dev/full", "folder").replace("HERE", "folder").split()).status == 0


def test_a_fix_that_fails_leaves_no_copy(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    g4convert("quantize", dense, "-o", tmp_path / "out", "-q", "--verify", "none")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace('"lm_head"', '"lm_heads"'))
    before = {path.name for path in config.parent.iterdir()}
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if target.name == config.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    ran = g4convert("check", config.parent, "--fix")
    assert ran.status == 5, ran.err
    assert {path.name for path in config.parent.iterdir()} == before


def test_an_output_that_cannot_get_its_name_is_not_lost(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an old output in a lower layer of a container, which the kernel does not rename (EXDEV)."""
    command = ("quantize", dense, "-o", tmp_path / "out", "-q", "--verify", "none", "--overwrite")
    g4convert(*command)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", failing(errno.EXDEV))
        ran = g4convert(*command, "--group-size", "64")
    error, hint = ran.err.splitlines()
    assert ran.status == 5
    assert "out: cannot be renamed to" in error
    assert hint == f"hint: move {tmp_path / 'out'} away, and give the command again"
    assert list((tmp_path / "out.partial").glob("journal*"))
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", failing(errno.EXDEV))
        ran = g4convert(*command, "--group-size", "64")
    hint = ran.err.splitlines()[1]
    done = f"mv {tmp_path / 'out.partial'} {tmp_path / 'out'} && rm {tmp_path / 'out'}/journal*.jsonl"
    assert hint == f"hint: it is complete: {done}"
    subprocess.run(done, shell=True, check=True)  # noqa: S602 -- as the hint says
    assert g4convert("verify", tmp_path / "out", "--reference", dense).status == 0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", HINTS[errno.ENOSPC]),
        (
            "unable to open file <a> in read-only mode: Too many open files (24)",
            "raise the limit of open files: ulimit -n",
        ),
        ("a tensor of 28 rows (28)", None),
        ("No space left on device", None),
    ],
)
def test_errors_of_the_system_in_the_words_of_libraries(words: str, hint: str | None) -> None:
    found = refusal_within(RuntimeError(words))
    assert (found.hint if found else None) == hint


def test_an_error_without_a_remedy_takes_that_of_its_place() -> None:
    assert str(refusal(OSError(errno.ELOOP, "loop"), "out", hint="elsewhere")) == "out: loop\nhint: elsewhere"
