"""Files of which nothing is known: too large, too deep, never read to the end of the memory."""

import os
from pathlib import Path

import pytest

from g4convert.bounded import read_bytes
from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import FormatError, G4Error, UsageError
from g4convert.forward.conversations import read_prompts
from g4convert.planning import recipe
from g4convert.verification import gates


@pytest.mark.parametrize("read", [recipe.load, gates.load])
def test_a_recipe_or_profile_without_end_is_refused(read, tmp_path: Path) -> None:  # noqa: ANN001 - either function
    path = tmp_path / "endless.yaml"
    path.write_text("")
    os.truncate(path, 1 << 40)
    with pytest.raises(UsageError, match="over 1 MiB"):
        read(str(path))


@pytest.mark.parametrize("read", [recipe.load, gates.load])
def test_a_recipe_or_profile_that_is_nested_too_deep_is_refused(read, tmp_path: Path) -> None:  # noqa: ANN001 - as above
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 20_000)
    with pytest.raises(UsageError):
        read(str(path))


@pytest.mark.parametrize("damage", ["endless", "deep", "binary"])
def test_prompts_that_are_none(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes({"endless": b"", "deep": b"[" * 200_000, "binary": b"\xff\xfe"}[damage])
    if damage == "endless":
        os.truncate(path, 1 << 40)
    with pytest.raises(G4Error):
        read_prompts(path, chat=True)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_config_or_index_without_end_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / file).touch()
    os.truncate(tmp_path / file, 1 << 40)
    with pytest.raises(FormatError, match="over 256 MiB"):
        Checkpoint.open(tmp_path)


def test_what_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert read_bytes(tmp_path / "file", 4) == b"1234"
