"""Checks, before a run continues, that the units in the journal are still intact on disk.

Quantized and moved bytes are compared with the unit's checksum, copied bytes with the source. A unit that fails is
done again. The check is needed because anything may have changed OUT.partial since the bytes were written.
"""

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
from g4convert.run_options import usable_cores

_BLOCK: Final = 4 << 20


def check_sizes(directory: Path, layout: Layout) -> None:
    """Check that every shard exists and has its planned size.

    Raises:
        InputError: shards are missing, longer or shorter; names all of them.
    """
    wrong = []
    for shard in layout.shards:
        path = directory / shard.file
        size = path.stat().st_size if path.exists() else None
        if size != shard.size:
            wrong.append(f"{shard.file}: {'missing' if size is None else f'{size} bytes'}, expected {shard.size}")
    if wrong:
        raise InputError(
            f"{directory}: shards of an unfinished run are damaged", offenders=wrong, hint="--overwrite starts again"
        )


def intact_units(
    done: Mapping[int, Done], units: tuple[Unit, ...], source: Reader, directory: Path, layout: Layout
) -> dict[int, Done]:
    """Return the finished units whose bytes are intact."""
    matching = {
        number: claim
        for number, claim in done.items()
        if number < len(units) and _has_statistics_of(claim, units[number])
    }
    with (
        Reader(directory, (shard.file for shard in layout.shards)) as written,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        check = partial(_is_intact, source=source, written=written)
        intact = pool.map(check, (units[number] for number in matching), matching.values())
        return {number: claim for (number, claim), is_intact in zip(matching.items(), intact, strict=True) if is_intact}


def _has_statistics_of(done: Done, unit: Unit) -> bool:
    """Return whether `done` has statistics of exactly the weights that `unit` quantizes."""
    return {row[0] for row in done.stats} == {task.step for task in unit if isinstance(task, QuantizeTask)}


def _is_intact(unit: Unit, done: Done, *, source: Reader, written: Reader) -> bool:
    copies = (task for task in unit if isinstance(task, CopyTask))
    return checksum(unit, written) == done.checksum and all(_is_true_copy(task, source, written) for task in copies)


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


def _is_true_copy(task: CopyTask, source: Reader, written: Reader) -> bool:
    for offset in range(0, task.nbytes, _BLOCK):
        nbytes = min(_BLOCK, task.nbytes - offset)
        original = source.read(task.file, task.begin + offset, nbytes)
        if original != written.read(task.target_file, task.target_begin + offset, nbytes):
            return False
    return True
