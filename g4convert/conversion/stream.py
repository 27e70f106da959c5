"""Runs units in worker threads: read, quantize or copy, write at the final offset, sync, then journal.

Workers are threads, since reading, the compiled kernels, writing and copying all release the interpreter lock. They
take units from one queue. About once a second the calling thread collects finished units, syncs the files they
touched and appends them to the journal, so that writing back overlaps with computing.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from g4convert.array_types import F32
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.journal import Done, Journal
from g4convert.conversion.writer import ShardWriter
from g4convert.errors import InputError, Interrupted
from g4convert.planning.units import CopyTask, MoveTask, QuantizeTask, Unit
from g4convert.progress import Progress
from g4convert.quantization import NonFiniteError, Scheme, Tiles, TileStats
from g4convert.tensors import DType

Schemes = Callable[[int], tuple[Scheme, F32 | None]]
"""Function from a weight's step to its scheme, and to E[x^2] of its inputs f32 [k] if the method needs it."""

_SYNC_SECONDS = 1.0
_POLL_SECONDS = 0.1
_MAX_PENDING = 64


@dataclass(frozen=True, slots=True)
class Streams:
    """Source files, output files and journal of a run."""

    reader: Reader
    writer: ShardWriter
    journal: Journal


@dataclass(frozen=True, slots=True)
class _Finished:
    unit: int
    done: Done


def run_units(  # noqa: PLR0913, PLR0917 -- the work, its places, and who is told
    units: Mapping[int, Unit],
    streams: Streams,
    schemes: Schemes,
    workers: Iterable[Callable[[], Tiles]],
    progress: Progress,
    on_written: Callable[[], object],
) -> dict[int, list[Any]]:
    """Do the given units, one thread for each entry of `workers`.

    Args:
        units: units to run, by number.
        streams: source files, output files and journal.
        schemes: gives each weight's scheme: bits, group size and method.
        workers: one function per worker, called in its thread, that makes the tile arithmetic.
        progress: receives every finished unit.
        on_written: called when all units are written, before the last of them are synced.

    Returns:
        Statistics of each unit, by number: a list of [step, *TileStats] for its quantize tasks.

    Raises:
        Interrupted: Ctrl-C; finished units are in the journal.
        InputError: a weight is NaN or infinite, or the source shrank.
    """
    waiting: SimpleQueue[tuple[int, Unit]] = SimpleQueue()
    for number, unit in units.items():
        waiting.put((number, unit))
    finished: SimpleQueue[_Finished] = SimpleQueue()
    stop = Event()
    makers = tuple(workers)
    results: dict[int, list[Any]] = {}
    with ThreadPoolExecutor(len(makers), thread_name_prefix="tile") as pool:
        threads: list[Future[None]] = []
        try:
            threads += [pool.submit(_work, waiting, finished, stop, streams, schemes, make) for make in makers]
            synced = time.monotonic()
            while wait(threads, _POLL_SECONDS, FIRST_EXCEPTION).not_done and not _any_failed(threads):
                if finished.qsize() >= _MAX_PENDING or time.monotonic() - synced > _SYNC_SECONDS:
                    results |= _commit(finished, units, streams, progress)
                    synced = time.monotonic()
            if not _any_failed(threads):
                on_written()
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; finished work is kept", hint="the same command continues") from error
        finally:
            stop.set()
            wait(threads)
            results |= _commit(finished, units, streams, progress)
        for thread in threads:
            thread.result()
    return results


def _any_failed(threads: Iterable[Future[None]]) -> bool:
    return any(thread.done() and thread.exception() for thread in threads)


def _commit(
    finished: "SimpleQueue[_Finished]", units: Mapping[int, Unit], streams: Streams, progress: Progress
) -> dict[int, list[Any]]:
    """Sync the finished units, append them to the journal, then report progress; return their statistics."""
    batch: dict[int, Done] = {}
    while True:
        try:
            item = finished.get_nowait()
        except Empty:
            break
        batch[item.unit] = item.done
    if batch:
        streams.writer.sync({task.target_file for number in batch for task in units[number]})
        streams.journal.append(batch)
        for number in batch:
            progress.advance(sum(task.nbytes for task in units[number]), units[number][-1].name)
    return {number: done.stats for number, done in batch.items()}


def _work(  # noqa: PLR0913, PLR0917 - a thread is given everything it touches
    waiting: "SimpleQueue[tuple[int, Unit]]",
    finished: "SimpleQueue[_Finished]",
    stop: Event,
    streams: Streams,
    schemes: Schemes,
    make_tiles: Callable[[], Tiles],
) -> None:
    """Run a worker: do units until the queue is empty or `stop` is set."""
    worker = _UnitWorker(streams, schemes, make_tiles())
    while not stop.is_set():
        try:
            number, unit = waiting.get_nowait()
        except Empty:
            return
        finished.put(_Finished(number, worker.do(unit)))


class _UnitWorker:
    """A worker thread's buffers, as large as the largest tile so far."""

    def __init__(self, streams: Streams, schemes: Schemes, tiles: Tiles) -> None:
        self._streams = streams
        self._schemes = schemes
        self._tiles = tiles
        self._source = np.empty(0, np.uint8)
        self._packed = np.empty(0, np.int32)
        self._scale = np.empty(0, np.uint16)

    def do(self, unit: Unit) -> Done:
        """Do every task of a unit; return the statistics of its quantize tasks and the checksum of its output."""
        stats = []
        digest = xxh3_64()
        for task in unit:
            self._streams.reader.will_need(task.file, task.begin, task.nbytes)
        for task in unit:
            match task:
                case CopyTask():
                    with self._streams.reader.opened(task.file) as fd:
                        self._streams.writer.copy(fd, task.begin, task.nbytes, task.target_file, task.target_begin)
                case MoveTask():
                    self._move(task, digest)
                case QuantizeTask():
                    stats.append([task.step, *astuple(self._quantize(task, digest))])
        return Done(stats, digest.hexdigest())

    def _move(self, task: MoveTask, digest: xxh3_64) -> None:
        """Write a tensor with its last axis moved to second place; values are moved as plain words."""
        raw = self._streams.reader.read(task.file, task.begin, task.nbytes)
        words = np.frombuffer(raw, f"u{task.dtype.itemsize}").reshape(task.shape)
        moved = np.ascontiguousarray(np.moveaxis(words, -1, 1))
        digest.update(moved.data)
        self._streams.writer.write(task.target_file, task.target_begin, moved.data)

    def _quantize(self, task: QuantizeTask, digest: xxh3_64) -> TileStats:
        self._source = _grow(self._source, task.nbytes)
        self._packed = _grow(self._packed, task.rows * task.packed_row // self._packed.itemsize)
        self._scale = _grow(self._scale, task.rows * task.groups)
        source = self._source[: task.nbytes]
        self._streams.reader.read_into(task.file, task.begin, source.data)
        rows = source.view(np.float32 if task.dtype is DType.F32 else np.uint16).reshape(task.rows, task.k)
        packed = self._packed[: task.rows * task.packed_row // 4].reshape(task.rows, -1)
        scale = self._scale[: task.rows * task.groups].reshape(task.rows, -1)
        try:
            scheme, squares = self._schemes(task.step)
            stats = self._tiles.quantize(rows, task.dtype, scheme, packed, scale, squares)
        except NonFiniteError as error:
            raise self._name_tensor(error, task) from error
        digest.update(packed.data)
        digest.update(scale.data)
        self._streams.writer.write(task.target_file, task.packed_begin, packed.data)
        self._streams.writer.write(task.target_file, task.scale_begin, scale.data)
        return stats

    def _name_tensor(self, error: NonFiniteError, task: QuantizeTask) -> InputError:
        """Return the error with the tensor's name and first bad index, which may lie in another worker's tile."""
        row, column = task.first_row + error.row, error.column
        stride = task.k * task.dtype.itemsize
        for first in range(0, task.first_row, task.rows):
            words = self._source[: min(task.rows, task.first_row - first) * stride]
            self._streams.reader.read_into(task.file, task.begin - (task.first_row - first) * stride, words.data)
            places = np.flatnonzero(_mask_not_finite(words, task.dtype))
            if places.size:
                row, column = first + int(places[0]) // task.k, int(places[0]) % task.k
                break
        return InputError(
            f"{task.name}.weight: [{row}, {column}] is NaN or infinite",
            hint="download it again, or take an earlier checkpoint of the training, which diverged",
        )


def _mask_not_finite(source: NDArray[Any], dtype: DType) -> NDArray[np.bool_]:
    """Return a mask of stored words that are NaN or infinite: all bits of the exponent are set."""
    words: NDArray[Any] = source.view(np.uint32 if dtype is DType.F32 else np.uint16)
    mask: NDArray[np.bool_] = (words & dtype.exponent) == dtype.exponent
    return mask


def _grow(buffer: NDArray[Any], size: int) -> NDArray[Any]:
    return buffer if buffer.size >= size else np.empty(size, buffer.dtype)
