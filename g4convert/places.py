"""Places of the files that a command writes: not among the files that it reads, not over one of them, not at a mount.

expand_home       Replaces `~` at the start of a path
check_above       Checks that a place to write lies in a directory
check_apart       Checks files that are written against those that are read
already_exists    Returns the error for a file that exists
holds_mount       Says whether something is mounted at or below a path
make_directory    Makes a directory and those above it
"""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from g4convert.errors import UsageError

_MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of mounts: the fifth word of a line is the place, with spaces and such in octal."""


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path as a user gives it, with `~` or `~user` at its start replaced; a user that is not there stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- Path's raises where there is no such user


def check_above(path: Path) -> None:
    """Check that what lies above a place is a directory, as far down the path as there is something.

    Raises:
        UsageError: it is a file, a device, or a link that leads to no directory.
    """
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise UsageError(f"{path}: {above} is not a directory", hint="name a place in a directory")


def check_apart(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Check that the files to write replace nothing that is read, lie in no checkpoint, and are different files.

    A file beside the weights becomes part of a checkpoint, and one that ends in .safetensors makes it unreadable.

    Raises:
        UsageError: names the first file that does.
    """
    occupied = {_real_path(path) for path in read}
    for path in written:
        place = _real_path(path)
        if overlap := occupied.intersection((place, *place.parents)):
            within = f"lies in {overlap.pop()}" if place not in overlap else "is another file of this command"
            raise UsageError(f"{path}: {within}, which it would change", hint="name a file elsewhere")
        occupied.add(place)


def already_exists(path: Path, why: str = "") -> UsageError:
    """Return the error for an existing file that would be replaced.

    Args:
        path: the file.
        why: why it differs from what the command would make; empty if unknown.
    """
    hint = "name another file, or pass --overwrite"
    return UsageError(f"{path}: is there already", offenders=[why] if why else [], hint=hint)


def holds_mount(path: Path) -> bool:
    """Return whether a path is a mount point, or a directory that has one in it: neither can be moved away as a whole.

    `os.path.ismount` compares devices, so a bind mount of the same disk is in the list of mounts only.
    """
    if path.is_mount():
        return True
    place = os.fsencode(_real_path(path))
    return any(mount == place or mount.startswith(place + b"/") for mount in _list_mounts())


def make_directory(path: Path) -> None:
    """Make a directory and those above it; `Path.mkdir` calls itself for each, and a path may have 2,000 of them.

    Raises:
        OSError: one cannot be made.
    """
    missing = [*takewhile(lambda directory: not directory.is_dir(), (path, *path.parents))]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)


def _list_mounts() -> Iterator[bytes]:
    """Yield the places of all mounts; none where the system has no such list."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        yield re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8) & 0xFF]), line.split()[4])


def _real_path(path: Path) -> Path:
    """Return an absolute path without links; `Path.resolve` raises where links go round."""
    return Path(os.path.realpath(path))
