"""Writing, journalling and the threads between, each by itself: what the kernel may refuse, cut short or lose."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from g4convert.checkpoint.reader import Reader
from g4convert.conversion import stream, writer
from g4convert.conversion.journal import Done, Journal, read_done
from g4convert.conversion.stream import Streams, run_units
from g4convert.conversion.writer import ShardWriter, copy_file, sync_directory, write_file
from g4convert.errors import EnvironmentFault, InputError, Interrupted
from g4convert.planning.layout import Layout, Shard
from g4convert.planning.units import CopyTask, QuantizeTask, Unit
from g4convert.progress import Progress
from g4convert.quantization import Method, Scheme, TileStats
from g4convert.quantization.tiles import CpuTiles
from g4convert.tensors import DType

DATA = bytes(np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8))
LAYOUT = Layout((Shard("a", 100_008, b"8 bytes!"), Shard("b", 64, b"")), {})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Reader, ShardWriter, Path]]:
    """A source of one file, and the output files of LAYOUT."""
    (tmp_path / "source").write_bytes(DATA)
    (tmp_path / "out").mkdir()
    with (
        Reader(tmp_path, ["source"]) as reader,
        ShardWriter(tmp_path / "out", LAYOUT, create=True) as shards,
    ):
        yield reader, shards, tmp_path / "out"


def test_shards_are_made_at_their_full_size_with_their_heads(opened: tuple[Reader, ShardWriter, Path]) -> None:
    directory = opened[2]
    assert (directory / "a").read_bytes() == b"8 bytes!" + bytes(100_000)
    assert (directory / "b").read_bytes() == bytes(64)


def test_a_joining_writer_neither_makes_nor_clears(opened: tuple[Reader, ShardWriter, Path]) -> None:
    _, shards, directory = opened
    shards.write("b", 3, b"xyz")
    with ShardWriter(directory, LAYOUT, create=False) as joining:
        joining.write("b", 6, b"uvw")
    assert (directory / "b").read_bytes() == bytes(3) + b"xyzuvw" + bytes(55)
    (directory / "b").unlink()
    with pytest.raises(FileNotFoundError):
        ShardWriter(directory, LAYOUT, create=False)


def copied(opened: tuple[Reader, ShardWriter, Path]) -> None:
    """Copy all but the ends of the source, and look."""
    reader, shards, directory = opened
    with reader.opened("source") as fd:
        shards.copy(fd, 10, 99_980, "a", 18)
    shards.sync(["a"])
    assert (directory / "a").read_bytes() == b"8 bytes!" + bytes(10) + DATA[10:-10] + bytes(10)


def test_copy_in_the_kernel(opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", None)  # not needed where the kernel copies
    copied(opened)


@pytest.mark.parametrize("code", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM", "EBADF"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_copy_falls_back_when_the_kernel_refuses(
    code: str, after: int, opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, calls = os.copy_file_range, []

    def refusing(source: int, target: int, count: int, begin: int, to: int) -> int:
        calls.append(begin)
        if len(calls) > after:
            raise OSError(getattr(errno, code), "refused")
        return kernel(source, target, min(count, 1000), begin, to)

    monkeypatch.setattr(os, "copy_file_range", refusing)
    monkeypatch.setattr(writer, "_CHUNK", 777)
    copied(opened)
    assert len(calls) == after + 1, "asked again after a refusal"


def test_copy_falls_back_when_the_kernel_copies_nothing(
    opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    copied(opened)


@pytest.mark.parametrize(("code", "expected"), [("EIO", EnvironmentFault), ("ENOSPC", OSError)])
def test_other_failures_of_a_copy_are_failures(
    code: str, expected: type[Exception], opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(getattr(errno, code), "broken")

    monkeypatch.setattr(os, "copy_file_range", failing)
    with pytest.raises(expected, match="broken"), opened[0].opened("source") as fd:
        opened[1].copy(fd, 0, 10, "a", 8)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_source_that_shrank_is_an_input_error(
    *, in_kernel: bool, opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, shards, directory = opened
    os.truncate(directory.parent / "source", 5000)
    if not in_kernel:
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    with reader.opened("source") as fd, pytest.raises(InputError, match="ends at byte 5000, was longer a moment ago"):
        shards.copy(fd, 4000, 2000, "a", 8)
    with pytest.raises(InputError, match="source: ends at byte 5000"):
        reader.read_into("source", 4000, memoryview(bytearray(2000)))


def test_short_reads_and_writes_are_continued(
    opened: tuple[Reader, ShardWriter, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, shards, directory = opened
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1001], at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:999]], at))
    buffer = bytearray(50_000)
    reader.read_into("source", 123, memoryview(buffer))
    assert buffer == DATA[123:50_123]
    shards.write("a", 8, np.frombuffer(buffer, np.int32).reshape(-1, 5).data)
    assert (directory / "a").read_bytes()[8:50_008] == buffer


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_writes_in_any_order_and_cut_give_the_same_file(
    data: st.DataObject, opened: tuple[Reader, ShardWriter, Path]
) -> None:
    reader, shards, directory = opened
    cuts = sorted({0, 100_000, *data.draw(st.lists(st.integers(0, 100_000), max_size=8))})
    for begin, end in data.draw(st.permutations(list(pairwise(cuts)))):
        if data.draw(st.booleans()):
            with reader.opened("source") as fd:
                shards.copy(fd, begin, end - begin, "a", 8 + begin)
        else:
            shards.write("a", 8 + begin, DATA[begin:end])
    assert (directory / "a").read_bytes() == b"8 bytes!" + DATA


def test_small_files(tmp_path: Path) -> None:
    write_file(tmp_path / "one", b"data")
    copy_file(tmp_path / "one", tmp_path / "two")
    sync_directory(tmp_path)
    assert (tmp_path / "two").read_bytes() == b"data"


def test_closed_readers_and_writers_leave_no_descriptors(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - an open iterator would count itself
    for _ in range(3):
        with Reader(tmp_path, ["source"]), ShardWriter(tmp_path, LAYOUT, create=True):
            assert len(os.listdir("/proc/self/fd")) == before + 5  # noqa: PTH208 - as above; with two directories
    with pytest.raises(FileNotFoundError):
        ShardWriter(tmp_path / "nowhere", LAYOUT, create=True)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


FINGERPRINT = {"g4convert": "1", "source": {"a": {"size": 1, "mtime_ns": 5}}, "recipe": {"group_size": 32}}


def journal_of(path: Path, *units: int) -> Path:
    with Journal(path, FINGERPRINT) as journal:
        for unit in units:
            journal.append({unit: done(unit)})
    return path


def done(unit: int) -> Done:
    """Record a unit of one weight as done."""
    return Done([[0, unit, *[0.5] * 7]], "5a")


def test_a_journal_is_continued(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.jsonl", 1, 2)
    journal_of(path, 7)
    assert read_done(tmp_path, FINGERPRINT) == {unit: done(unit) for unit in (1, 2, 7)}


def test_the_journals_of_all_ranks_count(tmp_path: Path) -> None:
    journal_of(tmp_path / "journal.jsonl", 0, 3)
    journal_of(tmp_path / "journal-1.jsonl", 1)
    journal_of(tmp_path / "journal-12.jsonl", 2)
    assert read_done(tmp_path, FINGERPRINT).keys() == {0, 1, 2, 3}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_a_unit_not_done(cut: int, tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.jsonl", 1, 2)
    os.truncate(path, path.stat().st_size - cut)
    left = read_done(tmp_path, FINGERPRINT)
    last = '{"unit": 2, "stats": [[0, 2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]], "checksum": "5a"}'
    assert left.keys() == ({1, 2} if cut == 1 else {1})
    assert cut <= len(last)
    journal_of(path, 9)
    assert read_done(tmp_path, FINGERPRINT).keys() == left.keys() | {9}


def test_a_line_of_zeros_as_a_power_cut_leaves_it(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "journal.jsonl", 1)
    with path.open("ab") as file:
        file.write(bytes(40))
    journal_of(path, 2)
    assert read_done(tmp_path, FINGERPRINT).keys() == {1, 2}


def test_a_torn_first_line_loses_the_journal_and_not_those_after(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(FINGERPRINT)[:20])
    assert read_done(tmp_path, FINGERPRINT) == {}
    journal_of(path, 4)
    assert read_done(tmp_path, FINGERPRINT).keys() == {4}


def test_every_difference_is_named(tmp_path: Path) -> None:
    journal_of(tmp_path / "journal.jsonl", 1)
    now = {
        "g4convert": "2",
        "source": {"b": {"size": 1}, "a": {"size": 1, "mtime_ns": 6}},
        "recipe": {"group_size": 64},
    }
    with pytest.raises(InputError, match="an unfinished run of something else") as caught:
        read_done(tmp_path, now)
    assert caught.value.offenders == (
        "g4convert: '1' then, '2' now",
        "recipe.group_size: 32 then, 64 now",
        "source.a.mtime_ns: 5 then, 6 now",
        "source.b: None then, {'size': 1} now",
    )
    assert "--overwrite" in caught.value.hint


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr(os, "fdatasync", lambda _: seen.append(path.read_text().count("\n")))
    journal_of(path, 1, 2)
    assert seen == [1, 2, 3]


class Doubling:
    """Tile arithmetic that can be told from none: every code word is 7, every scale 9."""

    def quantize(  # noqa: PLR0913, PLR0917 -- as `Tiles` has it
        self,
        rows: NDArray[Any],
        dtype: DType,
        scheme: Scheme,
        packed: NDArray[np.int32],
        scale: NDArray[np.uint16],
        squares: None,
    ) -> TileStats:
        """Write the same into every place."""
        assert dtype is DType.BF16
        assert squares is None
        assert scheme.group(rows.shape[1]) == 8
        packed[:], scale[:] = 7, 9
        return TileStats(weights=rows.size, groups=scale.size)


def units(count: int) -> dict[int, Unit]:
    """`count` units: each copies 100 bytes and quantizes one row of 8."""
    return {
        n: (
            CopyTask(f"copy {n}", "source", n * 200, 100, "a", 8 + n * 200),
            QuantizeTask(
                step=n,
                name=f"linear {n}",
                file="source",
                begin=n * 200 + 100,
                first_row=0,
                rows=1,
                k=8,
                dtype=DType.BF16,
                target_file="a",
                packed_begin=8 + n * 200 + 100,
                packed_row=4,
                scale_begin=8 + n * 200 + 104,
                groups=1,
            ),
        )
        for n in range(count)
    }


@pytest.fixture
def streams(opened: tuple[Reader, ShardWriter, Path]) -> Iterator[Streams]:
    with Journal(opened[2] / "journal.jsonl", FINGERPRINT) as journal:
        yield Streams(opened[0], opened[1], journal)


def alike(_: int) -> tuple[Scheme, None]:
    """Every weight by minmax."""
    return Scheme(4, 8, Method.MINMAX), None


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_workers_do_every_unit_once(workers: int, streams: Streams, tmp_path: Path) -> None:
    results = run_units(units(20), streams, alike, [Doubling] * workers, Progress(), lambda: None)
    assert results == {n: [[n, 8, 1, 0.0, 0.0, 0, 0, 0, 0]] for n in range(20)}
    assert {n: one.stats for n, one in read_done(tmp_path / "out", FINGERPRINT).items()} == results
    written = (tmp_path / "out" / "a").read_bytes()
    for n in range(20):
        piece = written[8 + n * 200 : 8 + n * 200 + 200]
        assert piece == DATA[n * 200 : n * 200 + 100] + b"\7\0\0\0\x09\0" + bytes(94)


def test_nothing_to_do_is_done(streams: Streams) -> None:
    assert run_units({}, streams, alike, [Doubling], Progress(), lambda: None) == {}


class Watching(Progress):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.seen = 0

    def advance(self, nbytes: int, name: str) -> None:
        """Add them up."""
        assert name.startswith("linear")
        self.seen += nbytes


def test_progress_is_told_of_every_source_byte(streams: Streams) -> None:
    watching = Watching()
    run_units(units(20), streams, alike, [Doubling] * 2, watching, lambda: None)
    assert watching.seen == 20 * 116


def test_bytes_are_synced_before_they_are_journalled(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    sync, append = streams.writer.sync, streams.journal.append
    monkeypatch.setattr(streams.writer, "sync", lambda files: (order.append("sync"), sync(files)))
    monkeypatch.setattr(streams.journal, "append", lambda records: (order.append("append"), append(records)))
    monkeypatch.setattr(stream, "_SYNC_SECONDS", 0.0)
    run_units(units(20), streams, alike, [Doubling], Progress(), lambda: None)
    assert order == ["sync", "append"] * (len(order) // 2)


def failing_at(number: int, error: BaseException) -> Callable[..., Any]:
    """A worker that fails when it comes to a unit."""
    do = stream._UnitWorker.do  # noqa: SLF001 - what the test breaks

    def wrapped(self: Any, unit: Unit) -> Done:  # noqa: ANN401 - a private class
        if unit[0].name == f"copy {number}":
            raise error
        return do(self, unit)

    return wrapped


@pytest.mark.parametrize("error", [InputError("bad weight"), OSError(errno.EIO, "disk"), MemoryError()])
def test_a_failing_worker_stops_the_others_and_keeps_what_is_done(
    error: Exception, streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream._UnitWorker, "do", failing_at(7, error))  # noqa: SLF001 - as above
    with pytest.raises(type(error)):
        run_units(units(20), streams, alike, [Doubling], Progress(), lambda: None)
    assert read_done(tmp_path / "out", FINGERPRINT).keys() == set(range(7))


@pytest.mark.parametrize(("dtype", "nan"), [(DType.BF16, 0x7FC0), (DType.F16, 0xFC00), (DType.F32, 0x7F800001)])
@pytest.mark.parametrize("first", [(0, 0), (5, 3), (63, 7), (64, 0), (150, 2), (191, 7), None])
def test_the_first_index_is_named_though_a_later_tile_came_first(
    first: tuple[int, int] | None, dtype: DType, nan: int, tmp_path: Path
) -> None:
    """Tiles of 64 rows of 8; a worker is given the last one, which has 10 rows, while no one did the others."""
    words = np.ones((202, 8), np.uint32 if dtype is DType.F32 else np.uint16)
    words[195, 4] = words[201, 0] = nan
    if first:
        words[first] = nan
    (tmp_path / "source").write_bytes(b"12" * 20 + words.tobytes())
    stride = 8 * dtype.itemsize
    task = QuantizeTask(0, "linear", "source", 40 + 192 * stride, 192, 10, 8, dtype, "a", 1000, 4, 2000, 1)
    with (
        Reader(tmp_path, ["source"]) as reader,
        ShardWriter(tmp_path, LAYOUT, create=True) as shards,
        Journal(tmp_path / "journal.jsonl", FINGERPRINT) as journal,
        pytest.raises(InputError) as caught,
    ):
        run_units({0: (task,)}, Streams(reader, shards, journal), alike, [CpuTiles], Progress(), lambda: None)
    row, column = first or (195, 4)
    assert caught.value.message == f"linear.weight: [{row}, {column}] is NaN or infinite"


def test_a_worker_that_cannot_start_is_an_error(streams: Streams) -> None:
    def broken() -> Doubling:
        raise OSError(errno.ENODEV, "no device")

    with pytest.raises(OSError, match="no device"):
        run_units(units(5), streams, alike, [broken], Progress(), lambda: None)


def test_ctrl_c_keeps_what_is_done(streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do = stream._UnitWorker.do  # noqa: SLF001 - slowed down

    def slow(self: Any, unit: Unit) -> Done:  # noqa: ANN401 - a private class
        time.sleep(0.01)
        return do(self, unit)

    class Interrupting(Progress):
        def advance(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(stream._UnitWorker, "do", slow)  # noqa: SLF001 - as above
    monkeypatch.setattr(stream, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(stream, "_POLL_SECONDS", 0.005)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run_units(units(200), streams, alike, [Doubling], Interrupting(), lambda: None)
    done = read_done(tmp_path / "out", FINGERPRINT)
    assert 0 < len(done) < 200


def test_a_stopped_worker_takes_no_more(streams: Streams) -> None:
    waiting: SimpleQueue[tuple[int, Unit]] = SimpleQueue()
    finished: SimpleQueue[Any] = SimpleQueue()
    waiting.put((0, units(1)[0]))
    stop = Event()
    stop.set()
    stream._work(waiting, finished, stop, streams, alike, Doubling)  # noqa: SLF001 - the thread's own function
    assert finished.empty()
    assert not waiting.empty()
