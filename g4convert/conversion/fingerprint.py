"""All facts that the bytes of an output depend on, as JSON that two runs can compare.

Size, time and header reveal a source that was saved again. A source changed with these kept is found by sampling 4 KiB
from the middle of every tensor, which detects other weights, but not a single changed value elsewhere.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from xxhash import xxh3_64

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.header import WeightFile
from g4convert.checkpoint.reader import Reader
from g4convert.errors import InputError
from g4convert.planning.layout import Layout
from g4convert.planning.recipe_files import ResolvedRecipe
from g4convert.planning.units import Unit

_SAMPLE: Final = 4096
"""Bytes that are read from each tensor."""


def fingerprint(
    checkpoint: Checkpoint, reader: Reader, recipe: ResolvedRecipe, method: str, units: tuple[Unit, ...]
) -> dict[str, Any]:
    """Return the facts that a run must share with the stopped run that it continues.

    Args:
        checkpoint: the source.
        reader: its open weight files.
        recipe: recipe of the output.
        method: method that finds scales, after `auto` has chosen.
        units: the work.
    """
    return {
        "g4convert": __version__,
        "source": {**checkpoint.fingerprint(), **_stamp_side_files(checkpoint)},
        "sample": sample_weights(checkpoint, reader),
        "recipe": recipe.settings(),
        "method": method,
        "units": len(units),
    }


def plan_facts(
    checkpoint: Checkpoint, recipe: ResolvedRecipe, layout: Layout, units: tuple[Unit, ...], device: str
) -> dict[str, Any]:
    """Return the facts that all ranks must share; without file times, since hosts may have their own copies."""
    files = checkpoint.fingerprint()
    return {
        "g4convert": __version__,
        "source": {name: {k: v for k, v in facts.items() if k != "mtime_ns"} for name, facts in files.items()},
        "recipe": recipe.settings(),
        "device": device.partition(":")[0],
        "layout": xxh3_64(repr((layout.shards, units)).encode()).hexdigest(),
    }


def differences(before: object, after: object, path: str = "") -> Iterable[tuple[str, object, object]]:
    """Yield the path and both values of every leaf in which two JSON values differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield path, before, after


def check_unchanged(checkpoint: Checkpoint, reader: Reader) -> None:
    """Check that the source's weight files have not changed since they were opened; called before results are kept.

    A file that was replaced counts as changed, since a part of the run reads by name. A file that is gone does not.

    Raises:
        InputError: weight files changed in size or time, or were replaced; names all of them.
    """
    wrong = [file.name for file in checkpoint.files if not _is_unchanged(checkpoint.path, file, reader)]
    if wrong:
        raise InputError(
            f"{checkpoint.path}: changed while it was read", offenders=wrong, hint="start again when nothing writes it"
        )


def _is_unchanged(directory: Path, file: WeightFile, reader: Reader) -> bool:
    with reader.opened(file.name) as fd:
        opened = os.fstat(fd)
    try:
        named = (directory / file.name).stat()
    except FileNotFoundError:
        named = opened
    return os.path.samestat(named, opened) and (file.size, file.mtime_ns) == (opened.st_size, opened.st_mtime_ns)


def changed_times(checkpoint: Checkpoint, sample: str) -> list[str]:
    """Return a line for each weight file that has another time than when it was opened, and its old time.

    Args:
        checkpoint: the source.
        sample: what `sample_weights` returned at the start.

    Returns:
        Nothing, too, if the weights are others, by their sizes and the sample.
    """
    try:
        stats = {file: (checkpoint.path / file.name).stat() for file in checkpoint.files}
        with Reader(checkpoint.path, checkpoint.weight_files) as reader:  # by name: a file may have been replaced
            same = sample_weights(checkpoint, reader) == sample
    except (OSError, InputError):
        return []
    if not same or any(file.size != stat.st_size for file, stat in stats.items()):
        return []
    return [
        f"{file.name}: touch -d @{_format_seconds(file.mtime_ns)}, now it has @{_format_seconds(stat.st_mtime_ns)}"
        for file, stat in stats.items()
        if file.mtime_ns != stat.st_mtime_ns
    ]


def _format_seconds(nanoseconds: int) -> str:
    return "{}.{:09}".format(*divmod(nanoseconds, 10**9))


def _stamp_side_files(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Return the size and modification time of every side file."""
    stats = {name: (checkpoint.path / name).stat() for name in checkpoint.side_files}
    return {name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats.items()}


def sample_weights(checkpoint: Checkpoint, reader: Reader) -> str:
    """Return a hash over the middle bytes of every tensor."""
    digest = xxh3_64()
    for _, stored in sorted(checkpoint.tensors.items()):
        nbytes = min(_SAMPLE, stored.info.nbytes)
        digest.update(reader.read(stored.file, stored.begin + (stored.info.nbytes - nbytes) // 2, nbytes))
    return digest.hexdigest()
