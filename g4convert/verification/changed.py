"""Detection of files that changed while a verification read them: then no finding can be relied on."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from g4convert.report import Finding, Severity

Stamps = Mapping[str, tuple[int, int, int]]
"""Inode, size and modification time (ns) of each file, by path."""


def take_stamps(*places: Path | None) -> Stamps:
    """Return the stamps of files and of the files in directories; missing files get none.

    Args:
        places: directories, files, or None.
    """
    paths = [path for place in places if place is not None for path in _list_files(place)]
    return {str(path): stamp for path in paths if (stamp := _stamp(path)) is not None}


def find_changes(before: Stamps, after: Stamps) -> Iterator[Finding]:
    """Yield a finding for each file that appeared, vanished or was written.

    Args:
        before: stamps from before the verification.
        after: stamps from after it.
    """
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            verb = "appeared" if name not in before else "vanished" if name not in after else "was written"
            remedy = "verify again when nothing writes it"
            words = f"{verb} while it was verified"
            yield Finding("static.changed", Severity.INCONCLUSIVE, Path(name).name, words, "no change", remedy)


def _list_files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    return [Path(entry.path) for entry in os.scandir(place) if entry.is_file()]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
