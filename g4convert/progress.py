"""Progress of a run on stderr: a bar on a terminal, a plain line now and then elsewhere, or nothing."""

import resource
import time
from collections.abc import Iterable
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from g4convert.quantities import duration, size

__all__ = ["Bar", "Lines", "Quiet", "peak_memory", "watch"]

_LINE_SECONDS = 5.0
_TELLING = 0.02
"""Share of the work that has to be done before its speed tells anything: what comes first compiles."""


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Quiet:
    """Says nothing."""

    def start(self, total: int, done: int) -> None:
        """Work begins."""

    def advance(self, nbytes: int, name: str) -> None:
        """Some of it is finished."""

    def step(self, name: str, total: int, unit: str) -> None:
        """A step of so many units begins, which are not bytes; one that was begun before has ended."""

    def tick(self, count: int, name: str = "") -> None:
        """So many more units of the step are done; `name` is what is worked on, where it changes within the step."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""


class _TwoLines(Progress):
    """The bar, and below it what is worked on: 80 columns do not hold both in one line."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.tasks[0].description if self.tasks else "", style="dim", no_wrap=True, overflow="ellipsis")


class Bar(Quiet):
    """One bar: share, bytes, MB/s, time left and peak memory; below it the current tensor."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress = _TwoLines(
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("opening", total=None, memory="")

    def start(self, total: int, done: int) -> None:
        """Show the bar from what an earlier run has finished."""
        _say_continued(self._console, total, done)
        self._progress.reset(self._task, total=total, completed=done, description="")

    def advance(self, nbytes: int, name: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=nbytes, description=name, memory=f"{size(peak_memory())} peak")

    def step(self, name: str, total: int, unit: str) -> None:
        """Show a bar of the step in place of the last one."""
        self._progress.stop()
        self._progress = Progress(
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.completed} of {task.total} " + unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            TextColumn("{task.description}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total, memory="")
        self._progress.start()

    def tick(self, count: int, name: str = "") -> None:
        """Move it."""
        memory = f"{size(peak_memory())} peak"
        self._progress.update(self._task, advance=count, description=name or None, memory=memory)

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
        self._name = self._unit = ""
        self._began = self._said = time.monotonic()

    def start(self, total: int, done: int) -> None:
        """Remember where the work stands."""
        _say_continued(self._console, total, done)
        self._total, self._done, self._fresh = total, done, 0
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
        parts = [f"{size(self._done)} of {size(self._total)}"]
        if self._done >= self._total:
            parts += [f"{size(speed)}/s", "done"]
        elif self._fresh >= _TELLING * self._total:
            parts += [f"{size(speed)}/s", f"{duration((self._total - self._done) / speed)} left"]
        _say(self._console, ", ".join([*parts, f"{size(peak_memory())} peak", name]))

    def step(self, name: str, total: int, unit: str) -> None:
        """Remember what is to be done."""
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._began = self._said = time.monotonic()

    def tick(self, count: int, name: str = "") -> None:
        """Say how far it is, if the last line is some seconds old."""
        self._done += count
        now = time.monotonic()
        if now - self._said < _LINE_SECONDS or self._done >= self._total:
            return
        self._said = now
        parts = [f"  {name or self._name}: {self._done:,} of {self._total:,} {self._unit}"]
        if self._done:
            parts.append(f"{duration((self._total - self._done) * (now - self._began) / self._done)} left")
        _say(self._console, ", ".join(parts))


def watch(console: Console, *, quiet: bool) -> Quiet:
    """The progress that suits where stderr goes."""
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


def _say_continued(console: Console, total: int, done: int) -> None:
    if done:
        _say(console, f"continuing: {size(done)} of {size(total)} were finished by an earlier run")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
