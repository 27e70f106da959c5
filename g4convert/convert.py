"""The pipeline: open, plan, check, stream, finish.

    open checkpoint -> plan -> layout -> OUT.partial: stream + journal -> config, card, side files -> rename to OUT

Everything that can be wrong with names, shapes, the recipe, the disk or the output directory is found before
OUT.partial exists. From then on a stop of any kind leaves OUT.partial, and the same command continues it.
"""

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from g4convert import __version__, output
from g4convert.card import model_card
from g4convert.checkpoint import Checkpoint
from g4convert.choose import choose
from g4convert.device import workers_for
from g4convert.errors import G4Error, InputError, UsageError
from g4convert.journal import Journal, read_done
from g4convert.layout import Layout, lay_out
from g4convert.plan import Plan, make_plan
from g4convert.proofs import check_drops
from g4convert.ranks import Ranks
from g4convert.reader import Reader
from g4convert.recipe import Resolved
from g4convert.serving import hold
from g4convert.source import Source
from g4convert.stream import Progress, Streams, run_units
from g4convert.summary import Choice, Summary, summarize
from g4convert.work import Unit, make_units
from g4convert.writer import ShardWriter, copy_file, sync_directory, write_file

__all__ = ["Conversion", "Job", "convert", "prepare"]

_JOURNALS = "journal*.jsonl"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for.

    Args:
        source: the checkpoint, resolved to a directory.
        recipe: what to do with it.
        output: directory to write.
        workers: threads, or 0 for one for each core (or GPU).
        device: `cpu`, `cuda` or `cuda:N`.
        overwrite: replace a non-empty output, start an unfinished one again if it is of something else.
        tps: tensor parallel sizes at which the recipe's engines must load the output.
    """

    source: Source
    recipe: Resolved
    output: Path
    workers: int = 0
    device: str = "cpu"
    overwrite: bool = False
    tps: tuple[int, ...] = (1,)

    @property
    def target(self) -> Path:
        """The output as an absolute path without links, so that it has a name and neighbours."""
        return self.output.resolve()

    @property
    def partial(self) -> Path:
        """Where the output grows."""
        return self.target.with_name(f"{self.target.name}.partial")

    @property
    def replaced(self) -> Path:
        """Where an output that is overwritten waits until the new one has its name."""
        return self.target.with_name(f"{self.target.name}.replaced")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A job with everything decided: the plan, the place of every byte, the units of work."""

    job: Job
    checkpoint: Checkpoint
    plan: Plan
    layout: Layout
    config: Mapping[str, Any]
    units: tuple[Unit, ...]


def prepare(job: Job) -> Conversion:
    """Decide everything, without reading a weight or writing a byte.

    Raises:
        G4Error: whatever is wrong with the source, the recipe or the output directory.
    """
    checkpoint = Checkpoint.open(job.source.path)
    plan = make_plan(checkpoint, job.recipe.recipe)
    hold(plan, job.tps)
    layout = lay_out(plan)
    _check_side_files(checkpoint)
    _check_output(job)
    return Conversion(
        job, checkpoint, plan, layout, output.config(checkpoint, plan), make_units(plan, layout, checkpoint)
    )


def convert(conversion: Conversion, progress: Progress, ranks: Ranks) -> Summary | None:
    """Write the output.

    Args:
        conversion: what `prepare` decided.
        progress: told of finished work.
        ranks: this process among those of the run.

    Returns:
        What was done, in rank 0; None in the others.

    Raises:
        Interrupted: stopped on request; the same command continues.
        InputError: a weight is not finite, a dropped tensor is not what it must be, the disk is full.
        EnvironmentFault: another rank is gone, or the device failed.
    """
    job = conversion.job
    workers = workers_for(job.device, job.workers)
    with Reader(conversion.checkpoint.path, conversion.checkpoint.weight_files) as reader:
        started = ranks.from_lead(_start(conversion, reader) if ranks.leads else None)
        scheme = started.choice.scheme(conversion.plan.recipe)
        pending = {number: conversion.units[number] for number in started.pending[ranks.rank :: ranks.world]}
        name = f"journal-{ranks.rank}.jsonl" if ranks.rank else "journal.jsonl"
        with (
            ShardWriter(job.partial, conversion.layout, create=False) as writer,
            Journal(job.partial / name, started.fingerprint) as journal,
        ):
            total = sum(task.nbytes for unit in conversion.units for task in unit)
            left = sum(task.nbytes for number in started.pending for task in conversion.units[number])
            progress.start(total, total - left)
            try:
                results = run_units(pending, Streams(reader, writer, journal), scheme, workers, progress)
            except InputError:
                shutil.rmtree(job.partial, ignore_errors=True)  # of a source that no run can finish
                raise
            for other in ranks.gather(results):
                results |= other
            if not ranks.leads:
                return None
            writer.sync(shard.file for shard in conversion.layout.shards)
    summary = summarize(conversion.plan, started.choice, len(conversion.layout.shards), {**started.done, **results})
    _finish(conversion, summary)
    return summary


@dataclass(frozen=True, slots=True)
class _Started:
    """What rank 0 tells the others: what is chosen, done and left."""

    choice: Choice
    fingerprint: Mapping[str, Any]
    done: Mapping[int, list[Any]]
    pending: tuple[int, ...]


def _start(conversion: Conversion, reader: Reader) -> "_Started | G4Error":
    """Check what needs reading, make or reopen OUT.partial; an error is returned, to be sent to every rank."""
    try:
        return _start_or_raise(conversion, reader)
    except G4Error as error:
        return error


def _start_or_raise(conversion: Conversion, reader: Reader) -> _Started:
    job = conversion.job
    check_drops(conversion.plan, conversion.checkpoint, reader)
    choice = choose(conversion.plan, conversion.checkpoint, reader)
    fingerprint = _fingerprint(conversion, choice)
    done: dict[int, list[Any]] = {}
    fresh = not any(job.partial.glob(_JOURNALS))
    if fresh and job.partial.exists():
        shutil.rmtree(job.partial)  # killed before its first unit
    if not fresh:
        try:
            done = read_done(job.partial, fingerprint)
        except InputError:
            if not job.overwrite:
                raise
            shutil.rmtree(job.partial)
            fresh = True
    if fresh:
        _make_partial(conversion, fingerprint)
    pending = tuple(number for number in range(len(conversion.units)) if number not in done)
    return _Started(choice, fingerprint, done, pending)


def _make_partial(conversion: Conversion, fingerprint: Mapping[str, Any]) -> None:
    """All that is known before a weight is read, then the journal: a directory without one is not continued.

    Shards are preallocated and the rest is written here, so a disk that is too small is found now.
    """
    partial = conversion.job.partial
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{partial}: cannot be made: {error.strerror}", hint="give -o on a disk you can write"
        ) from error
    made = False
    try:
        with ShardWriter(partial, conversion.layout, create=True) as writer:
            writer.sync(shard.file for shard in conversion.layout.shards)
        _write_known(conversion)
        Journal(partial / "journal.jsonl", fingerprint).close()
        sync_directory(partial)
        made = True
    except OSError as error:
        if error.errno in _NO_ROOM:
            need = sum(shard.size for shard in conversion.layout.shards)
            raise InputError(
                f"{partial}: no room for {need / 1e9:.2f} GB: {error.strerror}",
                hint="free some space, or give -o on another disk",
            ) from error
        raise
    finally:
        if not made:
            shutil.rmtree(partial, ignore_errors=True)


def _write_known(conversion: Conversion) -> None:
    """Side files, byte for byte, then the config and the index."""
    partial, checkpoint = conversion.job.partial, conversion.checkpoint
    for name in checkpoint.side_files:
        target = partial / (output.CARRIED_README if name == "README.md" else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(checkpoint.path / name, target)
    write_file(partial / "config.json", _json(conversion.config))
    write_file(partial / "model.safetensors.index.json", _json(conversion.layout.index()))


def _check_side_files(checkpoint: Checkpoint) -> None:
    """No file that is carried over may have the name of one that a growing output needs."""
    taken = [name for name in checkpoint.side_files if "/" not in name and fnmatch(name, _JOURNALS)]
    if {"README.md", output.CARRIED_README} <= {*checkpoint.side_files}:
        taken.append(output.CARRIED_README)
    if taken:
        raise InputError(f"{', '.join(taken)}: a name that the output needs", hint="rename the file, or move it away")


def _check_output(job: Job) -> None:
    """The output must be new, empty, or a checkpoint the user agreed to lose."""
    target, source = job.target, job.source.path.resolve()
    if target == source or source in target.parents or target in source.parents:
        raise UsageError(f"{job.output}: lies in the source, or the source in it", hint="give -o another directory")
    if target == Path.cwd():
        raise UsageError(
            f"{job.output}: is the current directory, which a finished output would replace",
            hint=f"cd .. and -o {target.name}, or give another directory",
        )
    if target.exists() and not target.is_dir():
        raise UsageError(f"{job.output}: is a file, expected a directory to make")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not job.overwrite:
        raise UsageError(f"{job.output}: is not empty", hint="--overwrite replaces it")
    if not (target / "config.json").is_file():
        raise UsageError(f"{job.output}: is not empty and holds no config.json: not a checkpoint, so not overwritten")
    if job.replaced.exists():
        raise UsageError(f"{job.replaced}: is there, the old output would go there first", hint="move it away")


def _fingerprint(conversion: Conversion, choice: Choice) -> dict[str, Any]:
    """Everything the output's bytes depend on, as JSON."""
    job = conversion.job
    return {
        "g4convert": __version__,
        "source": {**conversion.checkpoint.fingerprint(), **_stamps(conversion.checkpoint)},
        "recipe": job.recipe.settings(),
        "method": choice.method.value,
        "units": len(conversion.units),
    }


def _stamps(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Size and time of every file that is carried over."""
    found = {name: (checkpoint.path / name).stat() for name in checkpoint.side_files}
    return {name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in found.items()}


def _finish(conversion: Conversion, summary: Summary) -> None:
    """Write what tells of the result, drop the journal, and give the directory its name."""
    job, checkpoint = conversion.job, conversion.checkpoint
    partial = job.partial
    provenance = output.provenance(job.recipe, job.source, checkpoint, conversion.plan, summary)
    write_file(partial / "g4convert.json", _json(provenance))
    card = model_card(conversion.plan, job.source, job.recipe, job.target.name, summary)
    write_file(partial / "README.md", card.encode())
    for path in partial.glob(_JOURNALS):
        path.unlink()
    sync_directory(partial)
    _replace(job)


def _replace(job: Job) -> None:
    """Rename the finished directory into place; an old one goes only after the new one has its name."""
    overwritten = job.target.exists() and any(job.target.iterdir())
    if overwritten:
        job.target.rename(job.replaced)
    job.partial.rename(job.target)
    sync_directory(job.target.parent)
    if overwritten:
        shutil.rmtree(job.replaced)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
