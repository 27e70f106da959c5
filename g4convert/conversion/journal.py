"""Record of the units that are already on disk, so that a killed run continues.

`OUT.partial/journal.jsonl`: the first line is the fingerprint of the run (source, recipe, version), each further
line one finished unit with its statistics. A unit is appended only after its bytes are synced, so the journal
never claims more than the disk holds, also after a power cut; a torn last line is a unit not done. Further ranks
write `journal-<rank>.jsonl` beside it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from g4convert.errors import InputError

__all__ = ["Journal", "read_done"]

Fingerprint = Mapping[str, Any]
Records = Mapping[int, list[Any]]
"""Finished units: number -> statistics, as JSON."""


class Journal:
    """An open journal of one rank.

    Args:
        path: the file; begun with the fingerprint if it does not exist, or a kill tore its first line.
        fingerprint: what the output depends on, as JSON.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        fresh = not path.exists() or _parse(_lines(path)[0]) is None
        self._file = path.open("w" if fresh else "a", encoding="utf-8")
        if fresh:
            self._write([json.dumps(fingerprint)])
        else:
            self._file.write("\n")  # closes a line torn by a kill

    def append(self, records: Records) -> None:
        """Record units whose bytes are synced, and sync the record."""
        self._write([json.dumps({"unit": unit, "stats": stats}) for unit, stats in records.items()])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, lines: Iterable[str]) -> None:
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()
        os.fdatasync(self._file.fileno())


def read_done(directory: Path, fingerprint: Fingerprint) -> dict[int, list[Any]]:
    """The finished units of an earlier run of the same conversion, over all ranks.

    Raises:
        InputError: the earlier run had another source, recipe or version; names every difference.
    """
    done: dict[int, list[Any]] = {}
    for path in sorted(directory.glob("journal*.jsonl")):
        lines = _lines(path)
        before = _parse(lines[0])
        if before is None:
            continue
        differences = list(_differences(before, fingerprint))
        if differences:
            raise InputError(
                f"{directory}: an unfinished run of something else",
                offenders=differences,
                hint="--overwrite starts again; or finish it with the command it was started with",
            )
        for record in filter(None, map(_parse, lines[1:])):
            done[record["unit"]] = record["stats"]
    return done


def _lines(path: Path) -> list[str]:
    """The lines of a journal, at least one."""
    return path.read_text(encoding="utf-8").split("\n")


def _parse(line: str) -> dict[str, Any] | None:
    """A line as JSON, or None for one that a kill tore."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _differences(before: object, now: object, path: str = "") -> Iterable[str]:
    """Yield where two JSON values differ, one line for each leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path}: {before!r} then, {now!r} now"
