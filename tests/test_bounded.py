"""Files of which nothing is known: too large, too deep, never read to the end of the memory."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from g4convert.bounded import read_bytes
from g4convert.calibration.documents import read_documents
from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import FormatError, G4Error, InputError, UsageError
from g4convert.forward.conversations import read_prompts
from g4convert.planning import recipe_files
from g4convert.verification import profiles


@pytest.mark.parametrize("read", [recipe_files.load, profiles.load])
def test_a_recipe_or_profile_without_end_is_refused(read, tmp_path: Path) -> None:  # noqa: ANN001 - either function
    path = tmp_path / "endless.yaml"
    path.write_text("")
    os.truncate(path, 1 << 40)
    with pytest.raises(UsageError, match="over 1 MiB"):
        read(str(path))


@pytest.mark.parametrize("read", [recipe_files.load, profiles.load])
def test_a_recipe_or_profile_that_is_nested_too_deep_is_refused(read, tmp_path: Path) -> None:  # noqa: ANN001 - as above
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 1_000)
    with pytest.raises(UsageError):
        read(str(path))


BOMB = "pack:\n  - &l0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"  - &l{n} [{','.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize("read", [recipe_files.load, profiles.load])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"an alias \(\*l0\)"),
        ("pack: &a\n  - *a\n", "an alias"),
        ("num_bits: 4\nnum_bits: 8\n", "the key num_bits twice"),
        (f"num_bits: 0x{'f' * 5000}\n", "a number beyond 64 bits"),
        (f"num_bits: {'9' * 5000}\n", "not YAML"),
        ("description: 2001-99-99\n", "month must be"),
        ("description: !!python/object/apply:os.system ['id']\n", "not YAML"),
    ],
)
def test_yaml_that_means_more_than_it_says_is_refused(read, text: str, message: str, tmp_path: Path) -> None:  # noqa: ANN001 - as above
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read(str(path))


@pytest.mark.parametrize("size", ["9" * 4000 + "GB", "1." + "1" * 4000, "inf", "1e999"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(UsageError, match="max-shard-size"):
        recipe_files.load("w4a16-g32", {"max_shard_size": size})


@pytest.mark.parametrize("damage", ["endless", "deep", "binary"])
def test_prompts_that_are_none(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes({"endless": b"", "deep": b"[" * 200_000, "binary": b"\xff\xfe"}[damage])
    if damage == "endless":
        os.truncate(path, 1 << 40)
    with pytest.raises(G4Error):
        read_prompts(path, chat=True)


@pytest.mark.parametrize("read", [partial(read_prompts, chat=True), lambda path: read_documents(str(path))])
def test_half_of_a_surrogate_pair_is_no_text(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(r'{"messages": [{"role": "user", "content": "\ud800"}]}')
    with pytest.raises(InputError, match="1 line cannot be read") as caught:
        read(path)
    assert "surrogates not allowed" in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_config_or_index_without_end_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.checkpoint.files.MOST_CONFIG", 1 << 20)  # reading 256 MiB takes a second
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (tmp_path / file).touch()
    os.truncate(tmp_path / file, 1 << 40)
    with pytest.raises(FormatError, match="over 1 MiB"):
        Checkpoint.open(tmp_path)


def test_what_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert read_bytes(tmp_path / "file", 4) == b"1234"
