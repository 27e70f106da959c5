"""Files that are written whole or not at all, and places that are checked before any work."""

import errno
import os
import stat
from pathlib import Path

import pytest

from g4convert import places
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.places import holds_mount
from g4convert.whole_files import check_writable, write_whole


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", "zwölf")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "zwölf"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failure_leaves_the_old_file_or_none(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    if before is not None:
        path.write_text(before)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, b"new")
    assert caught.value.filename == str(path)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == ({} if before is None else {"a": before})


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    check_writable(tmp_path / "link")
    write_whole(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"data"


def test_a_device_is_written_in_place(tmp_path: Path) -> None:
    """A rename would put a file in place of /dev/null."""
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (Path(os.devnull), tmp_path / "null"):
        check_writable(path)
        write_whole(path, b"data")
        assert path.is_char_device()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    check_writable(path)
    write_whole(path, b"data")
    with pytest.raises(EnvironmentFault, match="File name too long") as caught:
        check_writable(tmp_path / ("n" * 256))
    assert caught.value.hint == "give a shorter name"


@pytest.mark.parametrize("name", ["", "nowhere/a"])
def test_a_directory_or_a_name_in_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file can be written there"):
        check_writable(tmp_path / name)


@pytest.mark.parametrize("name", ["file/a", "file/deep/a", "loop/a", "dangling/deep/a"])
def test_a_name_below_what_is_no_directory_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match=f"{name.split('/', maxsplit=1)[0]} is not a directory"):
        check_writable(tmp_path / name)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    check_writable(tmp_path / "a")
    check_writable(tmp_path / "b")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a", "old")]


MOUNT = "36 35 98:0 /mnt1 {} rw,noatime master:1 - ext4 /dev/root rw\n"


@pytest.mark.parametrize(
    ("mounted", "path", "expected"),
    [
        ("{}/out", "out", True),
        ("{}/out/deep", "out", True),
        ("{}/out\\040two", "out two", True),
        ("{}/link", "link", False),
        ("{}/out", "link", True),
        ("{}/out2", "out", False),
        ("{}", "out", False),
    ],
)
def test_the_list_of_mounts_shows_those_of_the_same_disk(
    mounted: str, path: str, *, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "mounts").write_text(MOUNT.format("/") + MOUNT.format(mounted.format(tmp_path)))
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "mounts")
    assert holds_mount(tmp_path / path) is expected


def test_a_system_without_a_list_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOUNTS", tmp_path / "none")
    assert not holds_mount(tmp_path)
    assert holds_mount(Path("/proc"))


@pytest.mark.parametrize("disk", ["has hard links", "has none"])
def test_what_came_meanwhile_is_not_replaced(disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if disk == "has none":
        monkeypatch.setattr(Path, "hardlink_to", refused)
    path = tmp_path / "a"
    write_whole(path, b"one", overwrite=False)
    with pytest.raises(UsageError, match="is there already") as caught:
        write_whole(path, b"two", overwrite=False)
    assert "--overwrite" in caught.value.hint
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a": b"one"}
    assert path.stat().st_nlink == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
