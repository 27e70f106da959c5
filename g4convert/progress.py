"""Progress of a run on stderr: a bar on a terminal, a plain line now and then elsewhere, or nothing."""

import resource
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["Bar", "Lines", "Quiet", "peak_memory", "watch"]

_LINE_SECONDS = 5.0


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Quiet:
    """Says nothing."""

    def start(self, total: int, done: int) -> None:
        """Work begins."""

    def advance(self, nbytes: int, name: str) -> None:
        """Some of it is finished."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""


class Bar(Quiet):
    """One bar: bytes, MB/s, time left, the current tensor and peak memory."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[memory]}  [dim]{task.description}", markup=True),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, memory="")

    def start(self, total: int, done: int) -> None:
        """Show the bar from what an earlier run has finished."""
        self._progress.reset(self._task, total=total, completed=done)

    def advance(self, nbytes: int, name: str) -> None:
        """Move the bar."""
        memory = f"{peak_memory() / 1e6:.0f} MB peak"
        self._progress.update(self._task, advance=nbytes, description=name, memory=memory)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Lines(Quiet):
    """A plain line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = self._fresh = 0
        self._began = self._said = time.monotonic()

    def start(self, total: int, done: int) -> None:
        """Remember where the work stands."""
        self._total, self._done = total, done
        self._began = self._said = time.monotonic()

    def advance(self, nbytes: int, name: str) -> None:
        """Say so, if the last line is some seconds old or all is done."""
        self._done += nbytes
        self._fresh += nbytes
        now = time.monotonic()
        if now - self._said < _LINE_SECONDS and self._done < self._total:
            return
        self._said = now
        speed = self._fresh / max(now - self._began, 1e-9)
        left = (self._total - self._done) / speed if speed else 0
        self._console.print(
            f"{self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, {speed / 1e6:.0f} MB/s, {left:.0f} s left, "
            f"{peak_memory() / 1e6:.0f} MB peak, {name}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def watch(console: Console, *, quiet: bool) -> Quiet:
    """The progress that suits where stderr goes."""
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal and sys.stderr.isatty() else Lines(console)
