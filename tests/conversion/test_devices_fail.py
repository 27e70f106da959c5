"""Devices that fail while they are used: one line that names the file, exit 5, and the same command continues."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.program import Program, g4convert
from helpers.runs import hashes, run

from g4convert.checkpoint import reader

__all__ = ["g4convert"]  # a fixture


@pytest.fixture(scope="module")
def expected(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what an undisturbed run writes."""
    return dict(run(dense, tmp_path_factory.mktemp("expected") / "out"))


def failing(name: str, after: int, code: int) -> Callable[..., Any]:
    """Make a system call that fails once it was called so often."""
    kernel, calls = getattr(os, name), []

    def call(*given: Any) -> Any:  # noqa: ANN401
        calls.append(name)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return kernel(*given)

    return call


@pytest.mark.parametrize(
    ("call", "after", "code"),
    [
        ("preadv", 30, errno.EIO),
        ("preadv", 31, errno.ESTALE),
        ("copy_file_range", 2, errno.EIO),
        ("pwrite", 12, errno.EIO),
        ("fdatasync", 3, errno.EIO),
    ],
)
def test_a_device_that_fails_is_named_and_the_same_command_continues(  # noqa: PLR0913, PLR0917 -- a row and fixtures
    call: str,
    after: int,
    code: int,
    dense: Path,
    tmp_path: Path,
    g4convert: Program,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("quantize", dense, "-o", tmp_path / "out", "-q", "--verify", "none")
    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing(call, after, code))
        ran = g4convert(*command)
    assert ran.status == 5
    error, hint = ran.err.splitlines()
    assert re.fullmatch(rf"error: (model.*\.safetensors|journal\.jsonl): {os.strerror(code)}", error)
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out").exists()
    assert g4convert(*command).status == 0
    assert hashes(tmp_path / "out") == expected


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_a_device_that_fails_at_the_first_byte(
    command: str, dense: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", failing("pread", 0, errno.EIO))
    given = (command, dense) if command == "plan" else (command, dense, "--reference", dense)
    ran = g4convert(*given)
    assert ran.status == 5
    assert ran.err.startswith("error: model")
    assert ran.err.count("error:") == 1


def test_more_files_than_a_process_may_open(
    dense: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files beyond the first few are opened for each use: source and output in many shards, byte for byte."""
    monkeypatch.setattr(reader, "_MAX_OPEN_FILES", 1)
    assert run(dense, tmp_path / "out") == expected
    assert len(run(dense, tmp_path / "many", max_shard_size="50KB")) > 20
