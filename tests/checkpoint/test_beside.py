"""Files beside the weights: patterns, and what `carry` and `leave` decide."""

import os
from pathlib import Path

import pytest
from helpers.stored import Stored, write_checkpoint

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.patterns import fault_of, matches
from g4convert.errors import InputError

A: Stored = ("BF16", (2, 3), bytes(range(12)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with files of every kind beside its weights."""
    directory = write_checkpoint(tmp_path / "model", {"model.safetensors": {"a": A}})
    for name in (
        *("tokenizer.json", "a.png", "sub/b.png", ".gitattributes", ".netrc", ".cache/x.txt", ".cache/.deep/y.txt"),
        *("trainer_state.json", "runs/today/events", "old.bin", "adapter_config.json", ".cache/z.safetensors"),
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("{}")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/secret.txt").write_text("secret")
    (directory / "note.txt").symlink_to(tmp_path / "home/secret.txt")
    (directory / "home").symlink_to(tmp_path / "home")
    os.mkfifo(directory / "pipe.txt")
    return directory


PLAIN = {"a.png", "sub/b.png", "tokenizer.json"}


def carried(model: Path, *, carry: tuple[str, ...] = (), leave: tuple[str, ...] = ()) -> set[str]:
    return {*Checkpoint.open(model).choosing(carry=carry, leave=leave).side_files}


@pytest.mark.parametrize(
    ("pattern", "more"),
    [
        (".gitattributes", {".gitattributes"}),
        (".*", {".gitattributes", ".netrc", ".cache/x.txt"}),
        (".cache/*.txt", {".cache/x.txt"}),
        (".cache/.deep", {".cache/.deep/y.txt"}),
        ("**/.deep/*", set()),
        ("trainer_state.json", {"trainer_state.json"}),
        ("runs", {"runs/today/events"}),
        ("runs/today/events", {"runs/today/events"}),
        ("note.txt", {"note.txt"}),
        ("*", set()),
        ("**", set()),
    ],
)
def test_carry_means_what_is_named_and_no_more(model: Path, pattern: str, more: set[str]) -> None:
    if pattern in {".*", ".cache/.deep"}:
        (model / ".cache/z.safetensors").unlink()
    if pattern == "**/.deep/*":
        with pytest.raises(InputError, match="mean no file"):
            carried(model, carry=(pattern,))
        return
    assert carried(model, carry=(pattern,)) == PLAIN | more


@pytest.mark.parametrize("pattern", ["old.bin", "adapter_config.json", ".cache/z.safetensors", ".cache"])
def test_what_a_loader_would_read_is_not_carried(model: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="no output may have"):
        carried(model, carry=(pattern,))


@pytest.mark.parametrize("pattern", ["home", "pipe.txt"])
def test_what_is_no_regular_file_is_not_carried(model: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="no regular file"):
        carried(model, carry=(pattern,))


@pytest.mark.parametrize(
    ("pattern", "less"),
    [("*.png", {"a.png"}), ("**/*.png", {"a.png", "sub/b.png"}), ("sub", {"sub/b.png"}), ("sub/", {"sub/b.png"})],
)
def test_what_a_pattern_of_leave_matches_is_not_carried(model: Path, pattern: str, less: set[str]) -> None:
    assert carried(model, leave=(pattern,)) == PLAIN - less


def test_leave_is_the_stronger(model: Path) -> None:
    assert carried(model, carry=(".*",), leave=(".cache", ".netrc")) == {*PLAIN, ".gitattributes"}


def test_links_to_nothing_open_and_are_carried_nowhere(model: Path) -> None:
    for name in ("logo.svg", "sub/voice.wav"):
        (model / name).symlink_to("../blobs/gone")
    assert Checkpoint.open(model).beside.broken == ("logo.svg", "sub/voice.wav")
    with pytest.raises(InputError, match="2 files that cannot be read") as raised:
        carried(model)
    assert raised.value.offenders[1] == "sub/voice.wav: a link to ../blobs/gone, which does not exist"
    with pytest.raises(InputError, match=r"voice\.wav: a link to"):
        carried(model, leave=("logo.svg",))
    assert carried(model, leave=("logo.svg", "sub")) == PLAIN - {"sub/b.png"}


def test_patterns_that_mean_nothing_are_all_named(model: Path) -> None:
    with pytest.raises(InputError) as raised:
        carried(model, carry=(".env", ".netrc"), leave=("*.jpg", "config.json", "*.png"))
    assert raised.value.offenders == ("--carry .env", "--leave *.jpg", "--leave config.json")


def test_what_patterns_decide_is_kept_with_what_stays_behind(model: Path) -> None:
    beside = Checkpoint.open(model).choosing(carry=(".netrc",), leave=("*.png",)).beside
    assert [(one.option, one.pattern, one.files) for one in beside.decided] == [
        ("carry", ".netrc", (".netrc",)),
        ("leave", "*.png", ("a.png",)),
    ]
    assert dict(beside.left) == {
        ".cache": "hidden, a directory",
        ".gitattributes": "hidden",
        "home": "a link, a directory",
        "note.txt": "a link out of the directory",
        "pipe.txt": "not a regular file",
    }


@pytest.mark.parametrize("pattern", ["", "/", "/etc/passwd", "../x", "a/../b", "./a", "a\nb", "a\x1b[2J", "x" * 1001])
def test_what_is_no_pattern(pattern: str) -> None:
    assert fault_of(pattern)


def test_a_pattern_of_many_parts_takes_no_time() -> None:
    assert not matches("/".join(["**", "a"] * 200), "/".join(["a"] * 199 + ["b"]))
    assert matches("/".join(["**", "a"] * 200), "/".join(["a"] * 300))
