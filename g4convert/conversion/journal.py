"""The journal: the record of units that are on disk, from which a killed run continues.

    7c0e1f... {"g4convert": "0.1.0", "source": ...}            the fingerprint of the run: source, recipe, version
    51a9b0... {"unit": 12, "stats": [...], "checksum": ...}    a finished unit

Each line of `OUT.partial/journal.jsonl` begins with a hash of the rest of the line. A line torn by a kill or damaged
by the disk fails its hash, and its unit is done again. A unit is appended only after its bytes are synced, so the
journal never claims more than the disk holds, even after a power cut. Other ranks write `journal-<rank>.jsonl`.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Final, Self

from xxhash import xxh3_64_hexdigest

from g4convert.checkpoint.files import open_regular
from g4convert.checkpoint.naming import naming
from g4convert.checkpoint.output_names import JOURNALS
from g4convert.conversion.fingerprint import differences
from g4convert.errors import InputError
from g4convert.quantization import TileStats

Fingerprint = Mapping[str, Any]

_MAX_JOURNAL_BYTES: Final = 1 << 28
"""Largest size of a journal in bytes; a record takes a few hundred, for a unit of 16 MiB."""
_STATISTICS: Final = len(fields(TileStats))


@dataclass(frozen=True, slots=True)
class Done:
    """A finished unit.

    Args:
        stats: [step, *TileStats] of its quantize tasks, as JSON.
        checksum: XXH3 (64 bits) of the quantized and moved bytes; copied bytes are compared with the source instead.
    """

    stats: list[Any]
    checksum: str


Records = Mapping[int, Done]


class Journal:
    """A rank's journal, open for appending.

    Args:
        path: the file; begun with the fingerprint if it does not exist or a kill tore its first line.
        fingerprint: facts that the output depends on, as JSON.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        self._name = path.name
        fresh = not path.exists() or _parse(_read_lines(path)[0]) is None
        self._file = path.open("w" if fresh else "a", encoding="ascii")
        try:
            if fresh:
                self._write([json.dumps(fingerprint)])
            else:
                self._file.write("\n")  # closes a line torn by a kill
        except BaseException:
            with suppress(OSError):  # what could not be written cannot be flushed
                self._file.close()
            raise

    def append(self, records: Records) -> None:
        """Record units whose bytes are synced, and sync the record."""
        self._write(
            json.dumps({"unit": unit, "stats": done.stats, "checksum": done.checksum}) for unit, done in records.items()
        )

    def replace(self, directory: Path) -> None:
        """Record that the run moves a directory away, to put the output in its place."""
        self._write([json.dumps({"replaced": _identify(directory)})])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, lines: Iterable[str]) -> None:
        with naming(self._name):
            self._file.write("".join(f"{xxh3_64_hexdigest(line.encode())} {line}\n" for line in lines))
            self._file.flush()
            os.fdatasync(self._file.fileno())


def read_done(directory: Path, fingerprint: Fingerprint) -> dict[int, Done]:
    """Return the finished units, over all ranks, of an earlier run of the same conversion.

    Raises:
        InputError: the earlier run had another source, recipe or version (names every difference), or a journal is
            no regular file or larger than `_MAX_JOURNAL_BYTES`.
    """
    done: dict[int, Done] = {}
    for path in sorted(directory.glob(JOURNALS)):
        lines = _read_lines(path)
        before = _parse(lines[0])
        if before is None:
            continue
        changes = [f"{key}: {then!r} then, {now!r} now" for key, then, now in differences(before, fingerprint)]
        if changes:
            raise InputError(
                f"{directory}: an unfinished run of something else",
                offenders=changes,
                hint="--overwrite starts again; or finish it with the command it was started with",
            )
        done |= filter(None, map(_parse_record, map(_parse, lines[1:])))
    return done


def is_journal(path: Path) -> bool:
    """Return whether a file is a journal that a run began."""
    try:
        return _parse(_read_lines(path)[0]) is not None
    except InputError:
        return False


def is_replaced(directory: Path, journals: Iterable[Path]) -> bool:
    """Return whether a journal says that its run moved a directory away, in which no name came or went since."""
    entry = {"replaced": _identify(directory)} if directory.is_dir() and not directory.is_symlink() else None
    return entry is not None and any(entry == _parse(line) for path in journals for line in _read_lines(path))


def _identify(directory: Path) -> list[int]:
    """Return what stays when a directory is renamed: device, inode, and the time at which a name came or went."""
    status = directory.stat()
    return [status.st_dev, status.st_ino, status.st_mtime_ns]


def _read_lines(path: Path) -> list[bytes]:
    """Return the lines of a journal, at least one."""
    with os.fdopen(open_regular(path, path.name), "rb") as file:
        data = file.read(_MAX_JOURNAL_BYTES + 1)
    if len(data) > _MAX_JOURNAL_BYTES:
        raise InputError(
            f"{path}: over {_MAX_JOURNAL_BYTES >> 20} MiB, which no journal is", hint="--overwrite starts again"
        )
    return data.split(b"\n")


def _parse(line: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of a line; None if its hash is wrong or it holds something else."""
    digest, _, text = line.partition(b" ")
    if xxh3_64_hexdigest(text).encode() != digest:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse_record(record: Mapping[str, Any] | None) -> tuple[int, Done] | None:
    """Return a record's unit number and `Done`; None if its form is wrong, since a right hash can be forged."""
    match record:
        case {"unit": int(unit), "stats": [*stats], "checksum": str(checksum)} if unit >= 0 and all(
            map(_is_row, stats)
        ):
            return unit, Done(stats, checksum)
    return None


def _is_row(row: object) -> bool:
    """Return whether `row` is [step, *TileStats], followed by an object if the method calibrates."""
    match row:
        case [int(step), *rest]:
            numbers, more = rest[:_STATISTICS], rest[_STATISTICS:]
            counted = len(numbers) == _STATISTICS and all(isinstance(n, int | float) and isfinite(n) for n in numbers)
            return step >= 0 and counted and len(more) <= 1 and all(isinstance(one, dict) for one in more)
    return False
