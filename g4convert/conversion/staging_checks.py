"""Checks of an output's place: that nothing is lost which no run made, neither in OUT nor in OUT.partial."""

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.output_names import JOURNALS
from g4convert.conversion.held import describe_existing
from g4convert.errors import InputError, UsageError
from g4convert.places import check_above, holds_mount
from g4convert.printable import printable

_ANOTHER: Final = "give -o another directory"


def check_name(output: Path, target: Path, beside: Sequence[Path]) -> None:
    """Check that the output's name is one that a directory can be renamed to.

    Args:
        output: the output directory as the user gave it.
        target: the same as an absolute path without links.
        beside: directories beside it that are renamed, too.

    Raises:
        UsageError: the output lies below a file, is a mount point or the current directory, or its name has control
            characters.
    """
    check_above(target)
    if mounts := [path for path in (target, *beside) if holds_mount(path)]:
        raise UsageError(
            f"{mounts[0]}: is a mount point or has one in it, and cannot be renamed",
            hint="give -o a directory in the mount",
        )
    if printable(target.name) != target.name:
        raise UsageError(f"{printable(target.name)}: a name with control characters", hint=_ANOTHER)
    if target == Path.cwd():
        raise UsageError(
            f"{output}: is the current directory, which a finished output would replace",
            hint=f"cd .. and -o {target.name}, or give another directory",
        )


def check_replaceable(
    output: Path, target: Path, *, in_the_way: Path | None, overwrite: bool, planned: Mapping[str, Any] | None = None
) -> None:
    """Check that the output is new, empty, or a checkpoint that may be replaced.

    Args:
        output: the output directory as the user gave it.
        target: the same as an absolute path without links.
        in_the_way: a directory of the user's where the old output would go; None if there is none.
        overwrite: True if an existing checkpoint may be replaced.
        planned: see `Staging.check`.

    Raises:
        UsageError: the output is none of these.
    """
    if os.path.lexists(target) and not target.is_dir():  # also a link to itself
        raise UsageError(f"{output}: is a file, expected a directory to make", hint=_ANOTHER)
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        text = f"not empty{describe_existing(target, planned)}"
        raise UsageError(f"{output}: {text}", hint=f"{_ANOTHER}, or --overwrite to replace this one")
    if not (target / "config.json").is_file():
        text = "not empty, and holds no config.json: not a checkpoint, so not overwritten"
        raise UsageError(f"{output}: {text}", hint=_ANOTHER)
    if in_the_way is not None:
        raise UsageError(f"{in_the_way}: is there, the old output would go there first", hint="move it away")


def check_partial(partial: Path, names: Collection[str], states: str, *, has_journal: bool) -> None:
    """Check that OUT.partial holds only files that a run writes, as all of it becomes part of the output.

    Args:
        partial: the directory.
        names: every file that this run writes, except the journals.
        states: the directory in it that may hold any file.
        has_journal: whether a journal is there.

    Raises:
        InputError: there is another file, or no run made the directory.
    """
    if partial.is_symlink() or not partial.is_dir():
        raise InputError(f"{partial}: is no directory that a run made", hint="move it away")
    strays = sorted(_find_strays(partial, names, states))
    if strays:
        raise InputError(
            f"{partial}: {len(strays)} files that the run did not write, or that have another name elsewhere",
            offenders=strays,
            hint="move them away; --overwrite starts a run again with all that lies there",
        )
    if not has_journal and any(partial.iterdir()):
        raise InputError(f"{partial}: has no journal, so no run made it", hint="move it away")


def _find_strays(directory: Path, names: Collection[str], states: str) -> Iterator[str]:
    """Yield each path that is neither in `names`, a journal nor in `states`, or that is no regular file.

    A file with several names (hard links) is one, too: a run that continues writes into its files.
    """
    for root, folders, files in os.walk(directory):
        relative = Path(root).relative_to(directory)
        for file in (*files, *(folder for folder in folders if Path(root, folder).is_symlink())):
            name = (relative / file).as_posix()
            expected = name in names or fnmatch(name, JOURNALS) or relative == Path(states)
            status = Path(root, file).lstat()
            if not expected or not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                yield name
