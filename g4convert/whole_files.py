"""Files that are written whole or not at all.

The bytes go to a new file in the same directory, `.g4convert-*.writing`, which then gets the name. A failure removes
the new file, and leaves the old file or none. A kill leaves both the old file, if any, and the new one.
"""

import os
from pathlib import Path
from secrets import token_hex

from g4convert.errors import UsageError
from g4convert.places import already_exists, check_above, holds_mount
from g4convert.refusals import refusal


def check_writable(path: Path) -> None:
    """Check that a file can be written at a path, before any work: make a file beside it, and remove it.

    Raises:
        UsageError: the path is a directory, in no directory, below a file, or `-`, which is not a file.
        EnvironmentFault: the system allows no file there: a disk that cannot be written, a name that is too long.
    """
    if str(path) == "-":
        raise UsageError("-: a file is written, and not to standard output", hint="name a file")
    try:
        check_above(path)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: no file can be written there", hint="name a file in a directory that exists")
        if place := _find_target(path):
            fresh = _make_fresh_path(place)
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            fresh.unlink()
    except OSError as error:
        raise refusal(error, path, hint="name another place") from error


def write_whole(path: Path, data: bytes | str, *, replace_link: bool = False, overwrite: bool = True) -> None:
    """Write a file whole or not at all; text as UTF-8. A pipe, a device or a mounted file is written in place.

    Args:
        path: the file.
        data: its content.
        replace_link: replace a link itself, not what it points to.
        overwrite: replace a file that is there; if not, one that came meanwhile stays.

    Raises:
        UsageError: a file is there that may not be replaced.
        OSError: it cannot be written; names `path`.
    """
    content = data.encode() if isinstance(data, str) else data
    place = path if replace_link else _find_target(path)
    try:
        if place is None:
            path.write_bytes(content)
            return
        fresh = _make_fresh_path(place)
        try:
            with fresh.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                fresh.replace(place)
            else:
                _give_name(fresh, place)
        finally:
            fresh.unlink(missing_ok=True)
    except FileExistsError as error:
        raise already_exists(path, "it was not there when this command began") from error
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _find_target(path: Path) -> Path | None:
    """Return the file that gets the bytes, behind links; None if it is there and cannot be replaced."""
    if path.exists() and (not path.is_file() or holds_mount(path)):
        return None
    return Path(os.path.realpath(path))


def _give_name(fresh: Path, place: Path) -> None:
    """Give a file its name, if nothing has it.

    Raises:
        FileExistsError: something has it.
    """
    try:
        place.hardlink_to(fresh)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        place.touch(exist_ok=False)
        fresh.replace(place)


def _make_fresh_path(place: Path) -> Path:
    return place.with_name(f".g4convert-{token_hex(8)}.writing")
