"""Checks that a run writes, renames and deletes nothing that it reads.

A directory of a run is renamed and deleted as a whole, so no input may lie in one, not even through a link or a bind
mount: a source that consists of links into an old output would be deleted with it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import UsageError


def check_inputs(output: Path, written: Sequence[Path], checkpoint: Checkpoint, files: Iterable[Path]) -> None:
    """Check that the source and other files that a run reads are apart from all that it writes or deletes.

    Args:
        output: the output as the user gave it, for messages.
        written: files and directories that the run makes, replaces, renames or deletes; the output first.
        checkpoint: the source.
        files: other files that are read.

    Raises:
        UsageError: one of them is, holds or lies in one of the others; names both.
    """
    source, another = checkpoint.path.resolve(), "give -o another directory"
    linked, read = [*_linked_files(checkpoint)], [*files]
    for path in written:
        named, place = output if path == written[0] else path, Path(os.path.realpath(path))
        if is_same(source, place):
            raise UsageError(f"{named}: is the source", hint=another)
        if _contains(source, place) or _contains(place, source):
            raise UsageError(f"{named}: lies in the source, or the source in it", hint=another)
        for file in (*linked, *read):
            if _contains(place, Path(os.path.realpath(file))):
                raise UsageError(f"{file}: lies in {named}, which the run would replace or delete", hint=another)


def _linked_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield the source's files that lie elsewhere: links, and files in directories that are links."""
    root = os.path.realpath(checkpoint.path)
    for name in (*checkpoint.weight_files, *checkpoint.side_files):
        if not os.path.realpath(checkpoint.path / name).startswith(f"{root}{os.sep}"):
            yield checkpoint.path / name


def _contains(above: Path, path: Path) -> bool:
    """Return whether `above` is `path` or a directory above it, also by another name (a bind mount)."""
    return any(is_same(above, place) for place in (path, *path.parents))


def is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are the same file; where one is not there, whether they are equal."""
    try:
        return path.samefile(other)
    except OSError:
        return path == other
