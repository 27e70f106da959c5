"""Run a program and say what it cost, on a machine whose caches are in a known state.

Keep this process small: a child's `ru_maxrss` starts at the size of the process that forked it, so nothing
here imports torch or numba.

A virtual machine may hand free memory back to its host within seconds; the next program to touch it pays a
fault of the host, up to 3 s a GB, which is more than everything measured here. `Ballast` therefore holds
memory between runs and gives it up as a run starts. On hardware it changes nothing.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

__all__ = ["Ballast", "Cost", "chill", "clear", "medians", "run", "warm"]

_HOLD = """
import mmap, sys
for line in sys.stdin:
    held = None
    if size := int(line):
        held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    print(flush=True)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory of a run.

    Args:
        wall: seconds from start to exit.
        user: CPU seconds in user mode, of the program and its children.
        system: CPU seconds in the kernel, likewise.
        peak: largest resident set of one process, in bytes.
        others: CPU seconds that the rest of the machine used meanwhile; a large share of `wall` spoils it.
        start: seconds of `wall` before the work began, where the program says so.
    """

    wall: float
    user: float
    system: float
    peak: float
    others: float
    start: float = 0.0


class Ballast:
    """Memory held while nothing is measured, by a child process."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._child = subprocess.Popen(
            [sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate("")

    def hold(self) -> None:
        """Take the memory."""
        self._resize(self._size)

    def release(self) -> None:
        """Give it up."""
        self._resize(0)

    def _resize(self, size: int) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{size}\n")
        self._child.stdin.flush()
        self._child.stdout.readline()


def run(
    argv: Sequence[str], log: Path, ballast: Ballast | None = None, env: Mapping[str, str] | None = None
) -> tuple[Cost, str]:
    """Run a program to its end; dirty pages of earlier runs are flushed first.

    Args:
        argv: the program and its arguments.
        log: takes its stderr.
        ballast: released as the program starts, taken back when it ends.
        env: variables to set beside the present ones.

    Returns:
        What it cost, and its stdout.

    Raises:
        SystemExit: it failed; the end of its log is the message.
    """
    os.sync()
    if ballast:
        ballast.release()
    stdout = log.with_suffix(".out")
    with log.open("wb") as err, stdout.open("wb") as out:
        busy, start = _busy(), time.perf_counter()
        child = subprocess.Popen(argv, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(child.pid, 0)
        wall, busy = time.perf_counter() - start, _busy() - busy
    if ballast:
        ballast.hold()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(argv)}\nexit status {child.returncode}\n{log.read_text()[-3000:]}")
    return _cost(wall, usage, busy), stdout.read_text()


def _cost(wall: float, usage: resource.struct_rusage, busy: float) -> Cost:
    user, system = usage.ru_utime, usage.ru_stime
    return Cost(wall, user, system, usage.ru_maxrss * 1024, max(0.0, busy - user - system))


def _busy() -> float:
    """Return the machine's CPU seconds so far that were not idle, waiting or stolen."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def medians(costs: Iterable[Cost]) -> Cost:
    """Return the median of each figure by itself."""
    return Cost(*map(median, zip(*map(astuple, costs), strict=True)))


def warm(directory: Path) -> None:
    """Read every file, so that the page cache holds it."""
    for path in directory.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(_BUFFER):
                pass


def chill(directory: Path) -> None:
    """Drop every file from the page cache."""
    os.sync()
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def clear(output: Path) -> None:
    """Remove what a run wrote, finished or not."""
    for path in (output, output.with_name(output.name + ".partial")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


_BUFFER = bytearray(1 << 22)
