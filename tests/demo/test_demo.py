"""`g4convert demo`: the whole road, and a directory in which nothing of others is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, g4convert

from g4convert.gemma4.family import Family

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["g4convert"]  # a fixture


def test_the_road_and_its_two_differences(g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("demo", tmp_path, "--family", "text")
    assert ran.status == 0, ran.err
    assert "making a tiny text checkpoint" in ran.err
    for text in ("role ", "\nerror ", "read back", "cost", "same top token", "next: g4convert verify"):
        assert text in ran.out
    meaning = " ".join(ran.out.partition("same top token")[2].split())
    assert "about 0, as what was written is what runs" in meaning
    assert "far smaller on a trained model" in meaning
    one_piece = ("next: ", "answers: ", "calibrated: ", str(tmp_path))  # commands and paths, however long
    assert max(len(line) for line in ran.out.splitlines() if not line.startswith(one_piece)) <= 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [".g4convert-demo.json", "text", "text-W4A16"]

    again = g4convert("demo", tmp_path, "--family", "text", "-q", "--json")
    assert again.err == ""
    found = json.loads(again.out)
    assert found["comparisons"][0]["read_back"]["max_abs"] <= 1e-4
    assert found["comparisons"][0]["cost"]["max_abs"] > 1e-4
    assert found["source"] == str(tmp_path / "text")

    planned = json.loads(g4convert("plan", tmp_path / "text", "--json").out)
    assert [one["disk"] for one in found["plan"]["methods"]] == [one["disk"] for one in planned["methods"]]

    short = g4convert("demo", tmp_path, "--family", "text", "-q")
    assert short.out.startswith("prompt")


def test_a_full_disk_is_one_line(g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the list of all files, from shutil, and the file that could not be copied is none of the user's."""

    def full(source: Path, _: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr(shutil, "copyfile", full)
    ran = g4convert("demo", tmp_path, "-q")
    hint = "free some space, or write to another disk"
    assert (ran.status, ran.err) == (5, f"error: {tmp_path}: No space left on device\nhint: {hint}\n")
    assert not list(tmp_path.iterdir())


def test_what_a_demo_did_not_make_stays(g4convert: Program, tmp_path: Path) -> None:
    theirs = tmp_path / "text-W4A16"
    theirs.mkdir()
    (theirs / "config.json").write_text("{}")
    ran = g4convert("demo", tmp_path, "--family", "text")
    assert ran.status == 2
    assert "text-W4A16/config.json" in ran.err
    assert sorted(tmp_path.rglob("*")) == [theirs, theirs / "config.json"]
    (tmp_path / "file").touch()
    assert g4convert("demo", tmp_path / "file").status == 2


def test_a_link_to_nothing_is_no_place(g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    ran = g4convert("demo", tmp_path / "link")
    assert (ran.status, ran.out) == (2, "")
    assert "link: is a file, expected a directory to write to\nhint: " in ran.err


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"])
def test_nothing_is_written_into_a_checkpoint(file: str, tmp_path: Path) -> None:
    """A demo below a checkpoint would break its verification."""
    from g4convert.demo import run as demo  # noqa: PLC0415 - brings torch
    from g4convert.errors import UsageError  # noqa: PLC0415 - beside it

    (tmp_path / file).write_text("{}")
    with pytest.raises(UsageError, match="is a checkpoint"):
        demo.make_room(tmp_path, ("text",))
    assert [one.name for one in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("change", ["add", "edit", "link", "directory"])
def test_what_a_demo_made_and_someone_changed_stays(change: str, tmp_path: Path) -> None:
    from g4convert.demo import run as demo  # noqa: PLC0415 - brings torch
    from g4convert.errors import UsageError  # noqa: PLC0415 - beside it

    made = tmp_path / "made"
    (made / "moe").mkdir(parents=True)
    (made / "moe" / "config.json").write_text("{}")
    demo.move_into_place(tmp_path, made, ("moe",))
    match change:
        case "add":
            (tmp_path / "moe" / "notes.txt").touch()
        case "edit":
            (tmp_path / "moe" / "config.json").write_text("{ }")
        case "link":
            (tmp_path / "moe" / "link").symlink_to(tmp_path)
        case "directory":
            (tmp_path / "moe" / "inner").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="not made by an earlier demo"):
        demo.make_room(tmp_path, ("moe",))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_demo_made_is_replaced(tmp_path: Path) -> None:
    from g4convert.demo import run as demo  # noqa: PLC0415 - brings torch

    for name in ("moe", "text"):
        (tmp_path / "made" / name).mkdir(parents=True)
        (tmp_path / "made" / name / "config.json").write_text(name)
        demo.move_into_place(tmp_path, tmp_path / "made", (name,))
    demo.make_room(tmp_path, ("moe",))
    assert not (tmp_path / "moe").exists()
    assert (tmp_path / "text" / "config.json").read_text() == "text"
    shutil.rmtree(tmp_path / "text")
    demo.make_room(tmp_path, ("text",))


def test_families_are_those_that_can_be_made() -> None:
    from g4convert.demo import Family as Made  # noqa: PLC0415 - brings torch

    assert Made is Family
