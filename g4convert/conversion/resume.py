"""Checks, before a run continues, that the units in the journal are still intact on disk.

Quantized and moved bytes are compared with the unit's checksum, copied bytes with the source. A unit that fails is
done again. The check is needed because anything may have changed OUT.partial since the bytes were written.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from xxhash import xxh3_64

from g4convert.checkpoint.reader import Reader
from g4convert.conversion.journal import Done
from g4convert.errors import InputError
from g4convert.planning.layout import Layout
from g4convert.planning.units import CopyTask, MoveTask, QuantizeTask, Unit

_BLOCK: Final = 4 << 20


def check_sizes(directory: Path, layout: Layout) -> None:
    """Check that every shard exists and has its planned size.

    Raises:
        InputError: shards are missing, longer or shorter; names all of them.
    """
    wrong = []
    for shard in layout.shards:
        path = directory / shard.file
        found = path.stat().st_size if path.exists() else None
        if found != shard.size:
            wrong.append(f"{shard.file}: {'missing' if found is None else f'{found} bytes'}, expected {shard.size}")
    if wrong:
        raise InputError(
            f"{directory}: shards of an unfinished run are damaged", offenders=wrong, hint="--overwrite starts again"
        )


def intact_units(
    done: Mapping[int, Done], units: tuple[Unit, ...], source: Reader, directory: Path, layout: Layout
) -> dict[int, Done]:
    """Return the finished units whose bytes are intact."""
    known = {number: one for number, one in done.items() if number < len(units) and _is_of(one, units[number])}
    with (
        Reader(directory, (shard.file for shard in layout.shards)) as written,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        check = partial(_is_sound, source=source, written=written)
        right = pool.map(check, (units[number] for number in known), known.values())
        return {number: one for (number, one), good in zip(known.items(), right, strict=True) if good}


def _is_of(done: Done, unit: Unit) -> bool:
    """Return whether `done` has statistics of exactly the weights that `unit` quantizes."""
    return {row[0] for row in done.stats} == {task.step for task in unit if isinstance(task, QuantizeTask)}


def _is_sound(unit: Unit, done: Done, *, source: Reader, written: Reader) -> bool:
    copies = (task for task in unit if isinstance(task, CopyTask))
    return checksum(unit, written) == done.checksum and all(_is_copied(task, source, written) for task in copies)


def checksum(unit: Unit, written: Reader) -> str:
    """Return the checksum of a unit's quantized and moved bytes, read from the output."""
    digest = xxh3_64()
    for task in unit:
        match task:
            case CopyTask():
                pass
            case MoveTask():
                digest.update(written.read(task.target_file, task.target_begin, task.nbytes))
            case QuantizeTask():
                digest.update(written.read(task.target_file, task.packed_begin, task.rows * task.packed_row))
                digest.update(written.read(task.target_file, task.scale_begin, task.scale_nbytes))
    return str(digest.hexdigest())


def _is_copied(task: CopyTask, source: Reader, written: Reader) -> bool:
    for at in range(0, task.nbytes, _BLOCK):
        nbytes = min(_BLOCK, task.nbytes - at)
        one = source.read(task.file, task.begin + at, nbytes)
        if one != written.read(task.target_file, task.target_begin + at, nbytes):
            return False
    return True
