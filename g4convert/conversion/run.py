"""Writes an output: starts or continues OUT.partial, streams every unit, then renames it to OUT.

    take the lock -> checks that read weights -> OUT.partial: stream + journal -> record, card -> rename to OUT

All decisions were taken by `job.prepare`; the checks here are those that read weights, and they run before OUT.partial
exists. From then on a stop of any kind leaves OUT.partial, and the same command continues it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from g4convert.conversion.side_files import json_bytes, make_record, names_of_files, write_known
from g4convert.conversion.stream import Streams, run_units
from g4convert.conversion.weighting import Weighting
from g4convert.conversion.workers import workers_for
from g4convert.conversion.writer import ShardWriter, write_heads
from g4convert.errors import InputError
from g4convert.planning.units import Unit
from g4convert.progress import Progress
from g4convert.quantization import Tiles


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


@dataclass(frozen=True, slots=True)
class _Started:
    """Message from rank 0 to the other ranks: the chosen method, the finished units and the pending units."""

    choice: MethodChoice
    fingerprint: Mapping[str, Any]
    done: Mapping[int, list[Any]]
    pending: tuple[int, ...]
    run: str
    """Identifier of the run whose lock rank 0 holds."""


@dataclass(frozen=True, slots=True)
class _Written:
    """Statistics of the units that this run did, by number, and hashes of the shards, by file name."""

    statistics: Mapping[int, list[Any]]
    hashes: Mapping[str, str]


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
    if conversion.calibration is not None:
        conversion.calibration.check_complete(conversion.plan)
    workers = workers_for(conversion.job.device, conversion.job.workers)
    with (
        Reader(conversion.checkpoint.path, conversion.checkpoint.weight_files) as reader,
        Lock(conversion.staging.lock) as lock,
    ):
        ranks.agree(_facts(conversion))
        started = ranks.lead(lambda: _start(conversion, reader, lock, layers))
        target = conversion.staging.target
        ranks.agree({"output": "the same directory" if lock.is_of(started.run) else f"{target}, another one"})
        with _dropping_unfinishable(conversion, started):
            written = _write_units(conversion, started, reader, workers, progress, ranks, layers)
            if written is None:
                return None
            check_unchanged(conversion.checkpoint, reader)
        weighting = Weighting.of(conversion.plan, started.choice, conversion.statistics)
        results = {**started.done, **written.statistics}
        report = weighting.report(conversion.plan) if layers is None else layers.report(results)
        files = len(conversion.layout.shards)
        summary = summarize(conversion.plan, started.choice, files, results, report)
        lock.check()
        if layers is not None:
            layers.close()
        _finish(conversion, summary, written.hashes, started.fingerprint["sample"])
        return summary


def _write_units(  # noqa: PLR0913, PLR0917 -- the work, its source, and those who do it
    conversion: Conversion,
    started: _Started,
    reader: Reader,
    workers: Iterable[Callable[[], Tiles]],
    progress: Progress,
    ranks: Ranks,
    layers: Layers | None,
) -> _Written | None:
    """Do this rank's share of the pending units, and wait for the other ranks; return None in ranks other than 0."""
    units, staging = conversion.units, conversion.staging
    tiled = [number for number in started.pending if number < conversion.tiled]
    layered = {number: units[number] for number in started.pending if number >= conversion.tiled}
    with (
        ShardWriter(staging.partial, conversion.layout, create=False) as writer,
        Journal(staging.journal(ranks.rank), started.fingerprint) as journal,
        ThreadPoolExecutor(1, "hash") as executor,
    ):
        hashing = _Hashing(conversion, executor)
        total = sum(task.nbytes for unit in units for task in unit)
        pending = sum(task.nbytes for number in started.pending for task in units[number])
        progress.start(total, total - pending)
        streams = Streams(reader, writer, journal)
        statistics = run_units(
            {number: units[number] for number in tiled[ranks.rank :: ranks.world]},
            streams,
            Weighting.of(conversion.plan, started.choice, conversion.statistics),
            workers,
            progress,
            hashing.start if ranks.world == 1 and layers is None else lambda: None,
        )
        if layers is not None:
            statistics |= layers.run(layered, started.done, streams, progress)
        for others in ranks.gather(statistics):
            statistics |= others
        if not ranks.leads:
            return None
        writer.sync(shard.file for shard in conversion.layout.shards)
        writer.check_in_place(staging.partial)
        return _Written(statistics, hashing.result())


class _Hashing:
    """Hashing of the shards in a thread, while the last shards are still being synced to disk.

    Args:
        conversion: the conversion whose shards are hashed.
        executor: executor of the hashing thread.
    """

    def __init__(self, conversion: Conversion, executor: Executor) -> None:
        files = tuple(shard.file for shard in conversion.layout.shards)
        self._hash = partial(file_hashes, conversion.staging.partial, files)
        self._executor = executor
        self._future: Future[Mapping[str, str]] | None = None

    def start(self) -> None:
        """Begin to hash in the thread; call when all bytes are written."""
        self._future = self._executor.submit(self._hash)

    def result(self) -> Mapping[str, str]:
        """Return the hash of each shard, by file name; hashes now if `start` was not called."""
        return self._hash() if self._future is None else self._future.result()


def _facts(conversion: Conversion) -> dict[str, Any]:
    """Return the facts that must be equal in all ranks."""
    job = conversion.job
    facts = plan_facts(conversion.checkpoint, job.recipe, conversion.layout, conversion.units, job.device)
    return facts if conversion.statistics is None else {**facts, "statistics": conversion.statistics.hash}


@contextmanager
def _dropping_unfinishable(conversion: Conversion, started: _Started) -> Iterator[None]:
    """Drop OUT.partial after an InputError: a weight is not finite, or is another now, so no run can finish it.

    A source that only got other times may get them back. Until then OUT.partial is refused by its fingerprint.

    Raises:
        InputError: the error, or the times to set back.
    """
    try:
        yield
    except InputError as error:
        if times := changed_times(conversion.checkpoint, started.fingerprint["sample"]):
            place = conversion.staging.partial
            hint = f"if only its times changed, set them back, and the same command continues {place}"
            raise InputError(error.message, offenders=times, hint=hint) from error
        conversion.staging.drop()
        raise


def _start(conversion: Conversion, reader: Reader, lock: Lock, layers: Layers | None) -> _Started:
    """Take the lock, run the checks that read weights, make or reopen OUT.partial."""
    lock.take()
    conversion.job.check_place(conversion.staging, conversion.checkpoint)
    conversion.staging.clear()
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
    journaled = staging.reopen(facts, names, layout, overwrite=job.overwrite)
    if journaled is None:
        staging.make(layout, facts, write_others)
        journaled = {}
    else:  # these bytes need no weight, so they are rewritten without comparing them
        write_heads(staging.partial, layout)
        write_others(staging.partial)
    done = intact_units(journaled, units, reader, staging.partial, layout) if journaled else {}
    if layers is not None:  # a journal that was forged has rows of another form
        done = {number: unit for number, unit in done.items() if number < conversion.tiled or layers.is_of(unit.stats)}
    pending = tuple(number for number in range(len(units)) if number not in done)
    return _Started(choice, facts, {number: unit.stats for number, unit in done.items()}, pending, lock.run)


def _finish(conversion: Conversion, summary: Summary, hashes: Mapping[str, str], sample: str) -> None:
    """Write g4convert.json and the model card, then rename OUT.partial to OUT."""
    job, checkpoint = conversion.job, conversion.checkpoint
    record = make_record(job.recipe, job.source, checkpoint, conversion.plan, summary, hashes, sample)
    name, refused = conversion.staging.target.name, conversion.outlook.refusing((1,))
    card = model_card(conversion.plan, job.source, job.recipe, name, summary, refused=refused)
    files = {"g4convert.json": json_bytes(record), "README.md": card.encode()}
    conversion.staging.finish(files, overwrite=job.overwrite)
