"""Opens regular files and parses JSON objects, and trusts none of them."""

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from g4convert.bounded import MOST_CONFIG, NOT_READABLE
from g4convert.checkpoint.naming import naming
from g4convert.errors import FormatError, InputError

SAVE_AGAIN: Final = "download the model again, or save it again with `save_pretrained`"


def open_regular(path: Path, file: str) -> int:
    """Open a regular file (links followed) for reading.

    Returns:
        A file descriptor, the caller's to close.

    Raises:
        InputError: missing, a link to nothing, not a regular file, or not readable.
    """
    try:
        with naming(file):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # non-blocking: a FIFO must not hang
    except OSError as error:
        raise _unreadable(path, file, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{file}: not a regular file", hint="put the file, or a link to it, in its place")
    return fd


def read_whole(directory: Path, file: str) -> bytes:
    """Return the bytes of a config or an index.

    Raises:
        FormatError: it is larger than what is read.
        InputError: no file, or one that cannot be read.
    """
    fd = open_regular(directory / file, file)
    with naming(file), os.fdopen(fd, "rb") as stream:
        content = stream.read(MOST_CONFIG + 1)
    if len(content) > MOST_CONFIG:
        raise FormatError(f"{file}: over {MOST_CONFIG >> 20} MiB, the most that is read", hint=SAVE_AGAIN)
    return content


def parse_object(raw: bytes, subject: str, hint: str) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8 and no key twice.

    Args:
        raw: the file's or header's bytes.
        subject: first words of messages.
        hint: the remedy to show on failure.

    Raises:
        FormatError: not UTF-8, not JSON, a key twice, or not an object.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise FormatError(f"{subject} is not UTF-8 (byte {error.start})", hint=hint) from error
    except _DuplicateKeyError as error:
        raise FormatError(f"{subject} has a key twice: {error}", hint=hint) from error
    except RecursionError as error:
        raise FormatError(f"{subject} is nested too deep to be read", hint=hint) from error
    except ValueError as error:
        raise FormatError(f"{subject} is not JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise FormatError(f"{subject} is a JSON {type(value).__name__}, expected an object", hint=hint)
    return value


def part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the object `name` within an object; empty if there is none, or something else in its place."""
    section = value.get(name)
    return section if isinstance(section, Mapping) else {}


def escape_unprintable(text: str) -> str:
    """Return the text for a one-line message, escaped if it has unprintable characters."""
    return text if text.isprintable() else ascii(text)


class _DuplicateKeyError(ValueError):
    """Raised when a JSON object has the same key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _DuplicateKeyError(escape_unprintable(twice))
    return table


def _unreadable(path: Path, file: str, error: OSError) -> InputError:
    if error.errno == errno.ENOENT and path.is_symlink():
        return InputError(
            f"{file}: a link to {path.readlink()}, which does not exist",
            hint="the download was not finished or the cache was cleaned: fetch the model again",
        )
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return InputError(f"{file}: no such file", hint="complete the download, or save the model again")
    reason = (error.strerror or type(error).__name__).lower()
    return InputError(f"{file}: cannot be read: {reason}", hint=NOT_READABLE)
