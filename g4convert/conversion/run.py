"""Writes an output: starts or continues OUT.partial, streams every unit, then renames it to OUT.

    take the lock -> checks that read weights -> OUT.partial: stream + journal -> record, card -> rename to OUT

All decisions were taken by `job.prepare`; the checks here are those that read weights, and they run before OUT.partial
exists. From then on a stop of any kind leaves OUT.partial, and the same command continues it.
"""

from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from g4convert.checkpoint.hashes import file_hashes
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.card import model_card
from g4convert.conversion.drops import check_drops
from g4convert.conversion.fingerprint import changed_times, check_unchanged, fingerprint, plan_facts
from g4convert.conversion.job import Conversion
from g4convert.conversion.journal import Journal
from g4convert.conversion.lock import Lock
from g4convert.conversion.method import choose
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.result import MethodChoice, Summary, summarize
from g4convert.conversion.resume import intact_units
from g4convert.conversion.side_files import json_bytes, names_of_files, provenance, write_known
from g4convert.conversion.stream import Streams, run_units
from g4convert.conversion.weighting import Weighting
from g4convert.conversion.workers import workers_for
from g4convert.conversion.writer import ShardWriter, write_heads
from g4convert.errors import G4Error, InputError
from g4convert.planning.units import Unit
from g4convert.progress import Progress


class Layers(Protocol):
    """Quantizer of the units that are whole layers; implemented in `calibration.run`."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Return all facts that the written bytes depend on, as JSON."""

    def run(
        self, pending: Mapping[int, Unit], done: Mapping[int, list[Any]], streams: Streams, progress: Progress
    ) -> dict[int, list[Any]]:
        """Quantize the layers in order and journal each; return the statistics of all units done or changed."""

    def is_of(self, rows: list[Any]) -> bool:
        """Return whether statistics of a layer have the form that `report` reads."""

    def report(self, results: Mapping[int, list[Any]]) -> Mapping[str, Any]:
        """Return the calibration's inputs and results as JSON, from the statistics of all units."""

    def close(self) -> None:
        """Remove working files that a finished output does not need."""


def convert(conversion: Conversion, progress: Progress, ranks: Ranks, layers: Layers | None = None) -> Summary | None:
    """Write the output.

    Args:
        conversion: decisions of `job.prepare`.
        progress: receives finished work.
        ranks: the processes of the run, and the rank of this process.
        layers: quantizes whole layers, which the ranks share, for a method that goes layer by layer.

    Returns:
        Summary of the run in rank 0; None in other ranks.

    Raises:
        Interrupted: stopped on request; the same command continues.
        InputError: a weight is not finite, a dropped tensor is not what it must be.
        EnvironmentFault: the disk is full, another rank is gone, or the device failed.
    """
    job, staging = conversion.job, conversion.staging
    if conversion.calibration is not None:
        conversion.calibration.check_complete(conversion.plan)
    workers = workers_for(job.device, job.workers)
    with (
        Reader(conversion.checkpoint.path, conversion.checkpoint.weight_files) as reader,
        Lock(staging.lock) as lock,
    ):
        ranks.agree(_facts(conversion))
        started = ranks.from_lead(_start(conversion, reader, lock, layers) if ranks.leads else None)
        weighting = Weighting.of(conversion.plan, started.choice, conversion.statistics)
        ranks.agree({"output": "the same directory" if lock.is_of(started.run) else f"{staging.target}, another one"})
        tiled = [number for number in started.pending if number < conversion.tiled]
        pending = {number: conversion.units[number] for number in tiled[ranks.rank :: ranks.world]}
        layered = {number: conversion.units[number] for number in started.pending if number >= conversion.tiled}
        with (
            ShardWriter(staging.partial, conversion.layout, create=False) as writer,
            Journal(staging.journal(ranks.rank), started.fingerprint) as journal,
            ThreadPoolExecutor(1, "hash") as aside,
        ):
            hashing = _Hashing(conversion, aside)
            total = sum(task.nbytes for unit in conversion.units for task in unit)
            left = sum(task.nbytes for number in started.pending for task in conversion.units[number])
            progress.start(total, total - left)
            try:
                streams = Streams(reader, writer, journal)
                is_last = ranks.world == 1 and layers is None
                results = run_units(
                    pending, streams, weighting, workers, progress, hashing.start if is_last else lambda: None
                )
                if layers is not None:
                    results |= layers.run(layered, started.done, streams, progress)
            except InputError as error:
                raise _give_up(conversion, started, error) from error
            for other in ranks.gather(results):
                results |= other
            if not ranks.leads:
                return None
            writer.sync(shard.file for shard in conversion.layout.shards)
            writer.check_in_place(staging.partial)
            hashes = hashing.result()
        try:
            check_unchanged(conversion.checkpoint, reader)
        except InputError as error:
            raise _give_up(conversion, started, error) from error
        files = len(conversion.layout.shards)
        results = {**started.done, **results}
        report = weighting.report(conversion.plan) if layers is None else layers.report(results)
        summary = summarize(conversion.plan, started.choice, files, results, report)
        lock.check()
        if layers is not None:
            layers.close()
        _finish(conversion, summary, hashes, started.fingerprint["sample"])
        return summary


class _Hashing:
    """Hashing of the shards in a thread, while the last shards are still being synced to disk.

    Args:
        conversion: the conversion whose shards are hashed.
        aside: executor of the hashing thread.
    """

    def __init__(self, conversion: Conversion, aside: Executor) -> None:
        files = tuple(shard.file for shard in conversion.layout.shards)
        self._hash = partial(file_hashes, conversion.staging.partial, files)
        self._aside = aside
        self._begun: Future[Mapping[str, str]] | None = None

    def start(self) -> None:
        """Begin to hash in the thread; call when all bytes are written."""
        self._begun = self._aside.submit(self._hash)

    def result(self) -> Mapping[str, str]:
        """Return the hash of each shard, by file name; hashes now if `start` was not called."""
        return self._hash() if self._begun is None else self._begun.result()


def _facts(conversion: Conversion) -> dict[str, Any]:
    """Return the facts that must be equal in all ranks."""
    job = conversion.job
    facts = plan_facts(conversion.checkpoint, job.recipe, conversion.layout, conversion.units, job.device)
    return facts if conversion.statistics is None else {**facts, "statistics": conversion.statistics.hash}


@dataclass(frozen=True, slots=True)
class _Started:
    """Message from rank 0 to the other ranks: the chosen method, the finished units and the pending units."""

    choice: MethodChoice
    fingerprint: Mapping[str, Any]
    done: Mapping[int, list[Any]]
    pending: tuple[int, ...]
    run: str
    """Identifier of the run whose lock rank 0 holds."""


def _give_up(conversion: Conversion, started: _Started, error: InputError) -> InputError:
    """Return the error to raise; drop OUT.partial if no run can finish it: a weight is not finite, or is another now.

    A source that only got other times may get them back. Until then OUT.partial is refused by its fingerprint.
    """
    if times := changed_times(conversion.checkpoint, started.fingerprint["sample"]):
        hint = f"if only its times changed, set them back, and the same command continues {conversion.staging.partial}"
        return InputError(error.message, offenders=times, hint=hint)
    conversion.staging.drop()
    return error


def _start(conversion: Conversion, reader: Reader, lock: Lock, layers: Layers | None) -> "_Started | G4Error":
    """Take the lock, run the checks that read weights, make or reopen OUT.partial.

    Returns an error instead of raising it, so that rank 0 can send it to every rank.
    """
    try:
        lock.take()
        conversion.job.check_place(conversion.staging, conversion.checkpoint)
        conversion.staging.clear()
        return _start_or_raise(conversion, reader, lock, layers)
    except G4Error as error:
        return error


def _start_or_raise(conversion: Conversion, reader: Reader, lock: Lock, layers: Layers | None) -> _Started:
    job, staging = conversion.job, conversion.staging
    check_drops(conversion.plan, conversion.checkpoint, reader)
    choice = choose(conversion.plan, conversion.checkpoint, reader)
    units, layout = conversion.units, conversion.layout
    facts = fingerprint(conversion.checkpoint, reader, job.recipe, choice.method.value, units)
    if conversion.statistics is not None:
        facts["calibration"] = {"statistics": conversion.statistics.hash}
    if layers is not None:
        facts["calibration"] = dict(layers.fingerprint)
    write_others = partial(write_known, conversion.checkpoint, layout, conversion.config)
    names = names_of_files(conversion.checkpoint, layout)
    claimed = staging.done(facts, names, layout, overwrite=job.overwrite)
    if claimed is None:
        staging.make(layout, facts, write_others)
        claimed = {}
    else:  # these bytes need no weight, so they are rewritten without comparing them
        write_heads(staging.partial, layout)
        write_others(staging.partial)
    done = intact_units(claimed, units, reader, staging.partial, layout) if claimed else {}
    if layers is not None:  # a journal that was forged has rows of another form
        done = {number: one for number, one in done.items() if number < conversion.tiled or layers.is_of(one.stats)}
    pending = tuple(number for number in range(len(units)) if number not in done)
    return _Started(choice, facts, {number: one.stats for number, one in done.items()}, pending, lock.run)


def _finish(conversion: Conversion, summary: Summary, hashes: Mapping[str, str], sample: str) -> None:
    """Write g4convert.json and the model card, then rename OUT.partial to OUT."""
    job, checkpoint = conversion.job, conversion.checkpoint
    made = provenance(job.recipe, job.source, checkpoint, conversion.plan, summary, hashes, sample)
    name, refused = conversion.staging.target.name, conversion.outlook.refusing((1,))
    card = model_card(conversion.plan, job.source, job.recipe, name, summary, refused=refused)
    files = {"g4convert.json": json_bytes(made), "README.md": card.encode()}
    conversion.staging.finish(files, overwrite=job.overwrite)
