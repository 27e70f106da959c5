"""Places of the files that a command writes: never among the files that it reads, nor in the place of one."""

import os
from collections.abc import Iterable
from pathlib import Path

from g4convert.errors import UsageError

__all__ = ["check_apart"]


def check_apart(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Check that the files to write replace nothing that is read, lie in no checkpoint, and are different files.

    A file beside the weights becomes part of a checkpoint, and one that ends in .safetensors makes it unreadable.

    Args:
        written: files to write.
        read: files, and directories of checkpoints.

    Raises:
        UsageError: names the first file that does.
    """
    taken = {_real(path) for path in read}
    for path in written:
        place = _real(path)
        if meant := taken.intersection((place, *place.parents)):
            within = f"lies in {meant.pop()}" if place not in meant else "is another file of this command"
            raise UsageError(f"{path}: {within}, which it would change", hint="name a file elsewhere")
        taken.add(place)


def _real(path: Path) -> Path:
    """Return an absolute path without links; `Path.resolve` raises where links go round."""
    return Path(os.path.realpath(path))
