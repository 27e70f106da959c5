"""Progress of a run on stderr: a bar on a terminal, plain lines every few seconds elsewhere, or nothing."""

import resource
import time
from collections.abc import Callable, Iterable
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.text import Text

from g4convert.quantities import duration, size

_LINE_SECONDS = 10.0
_SHARE_BEFORE_SPEED = 0.02
"""Share of the work after which speed and time left are shown; earlier the speed misleads, as kernels compile."""


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Progress:
    """Progress that prints nothing; base class of the displays."""

    def start(self, total: int, done: int) -> None:
        """Begin work of `total` bytes, of which an earlier run finished `done`."""

    def advance(self, nbytes: int, name: str) -> None:
        """Add `nbytes` finished bytes; `name` is the current tensor."""

    def step(self, name: str, total: int, unit: str) -> None:
        """Begin a step of `total` units that are not bytes, and end the step before it; without `unit`, of shares."""

    def tick(self, count: int, name: str = "") -> None:
        """Add `count` finished units of the step; `name` is the current item, if it changes within the step."""

    def wait(self) -> None:
        """End the step; what follows has no known length."""

    def say(self, text: str) -> None:
        """Print what is done next; it ends the step."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the display; there is none here."""


class _TwoLines(RichProgress):
    """A bar with the current tensor or step on a line below, as 80 columns do not hold both."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.tasks[0].description if self.tasks else "", style="dim", no_wrap=True, overflow="ellipsis")


class _TimeLeft(TimeRemainingColumn):
    """Time left; blank while it is not known."""

    def render(self, task: Task) -> Text:
        """Return the text for a task."""
        text = super().render(task)
        return text.append(" left") if task.time_remaining is not None else Text("")


class _Speed(ProgressColumn):
    """Mean speed of this run; blank at first."""

    def render(self, task: Task) -> Text:
        """Return the text for a task with the number of bytes of earlier runs in its field `earlier`."""
        fresh = task.completed - task.fields["earlier"]
        if not task.elapsed or task.total is None or fresh < max(1, _SHARE_BEFORE_SPEED * task.total):
            return Text("")
        return Text(f"{size(fresh / task.elapsed)}/s")


class Bar(Progress):
    """Progress as a bar with share, bytes, MB/s and time left, the current tensor below; between steps a clock."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = self._clock()
        self._task = self._progress.add_task("opening", total=None)

    def start(self, total: int, done: int) -> None:
        """Show the bar from what an earlier run has finished."""
        _say_continued(self._console, total, done)
        share = BarColumn(bar_width=16), TaskProgressColumn(), DownloadColumn(), _Speed()
        bar = _TwoLines(*share, _TimeLeft(), console=self._console, transient=True)
        self._replace(bar, "", total, done)

    def advance(self, nbytes: int, name: str) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=nbytes, description=name)

    def step(self, name: str, total: int, unit: str) -> None:
        """Show a bar for the step in place of the last bar."""
        counted = [TextColumn("{task.completed} of {task.total} " + unit)] if unit else []
        columns = BarColumn(bar_width=16), TaskProgressColumn(), *counted, _TimeLeft()
        self._replace(_TwoLines(*columns, console=self._console, transient=True), name, total)

    def _replace(self, progress: RichProgress, name: str, total: int | None, done: int = 0) -> None:
        """Show another display in place of the last."""
        self._progress.stop()
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, earlier=done)
        progress.start()

    def _clock(self) -> RichProgress:
        """Return a display without a share of the work: a spinner and the time since it began."""
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        return RichProgress(*columns, console=self._console, transient=True)

    def tick(self, count: int, name: str = "") -> None:
        """Move the bar of the step."""
        self._progress.update(self._task, advance=count, description=name or None)

    def wait(self) -> None:
        """Show a clock in place of the last bar, which would stand at 100 %."""
        self._replace(self._clock(), "", None)

    def say(self, text: str) -> None:
        """Print a line, with a clock below."""
        self.wait()
        _say(self._console, text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Lines(Progress):
    """Progress as a plain line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = self._fresh = 0
        self._name = self._unit = ""
        self._began = self._last_line = time.monotonic()

    def start(self, total: int, done: int) -> None:
        """Reset the counts."""
        _say_continued(self._console, total, done)
        self._total, self._done, self._fresh = total, done, 0
        self._began = self._last_line = time.monotonic()

    def advance(self, nbytes: int, name: str) -> None:
        """Add finished bytes; print a line if the last line is some seconds old or all is done."""
        self._done += nbytes
        self._fresh += nbytes
        now = time.monotonic()
        if now - self._last_line < _LINE_SECONDS and self._done < self._total:
            return
        self._last_line = now
        speed = self._fresh / max(now - self._began, 1e-9)
        parts = [f"{size(self._done)} of {size(self._total)}"]
        if self._done >= self._total:
            parts += [f"{size(speed)}/s", "done"]
        elif self._fresh >= _SHARE_BEFORE_SPEED * self._total:
            parts += [f"{size(speed)}/s", f"{duration((self._total - self._done) / speed)} left"]
        current = [name] if self._done < self._total else []
        _say(self._console, ", ".join([*parts, *current]))

    def step(self, name: str, total: int, unit: str) -> None:
        """Reset the counts for the step."""
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._began = self._last_line = time.monotonic()

    def tick(self, count: int, name: str = "") -> None:
        """Add finished units; print a line if the last line is some seconds old."""
        self._done += count
        now = time.monotonic()
        if now - self._last_line < _LINE_SECONDS or self._done >= self._total:
            return
        self._last_line = now
        share = f"{self._done:,} of {self._total:,} {self._unit}" if self._unit else f"{self._done / self._total:.0%}"
        parts = [f"  {name or self._name}: {share}"]
        if self._done:
            parts.append(f"{duration((self._total - self._done) * (now - self._began) / self._done)} left")
        _say(self._console, ", ".join(parts))

    def say(self, text: str) -> None:
        """Print a line."""
        _say(self._console, text)


class _WithMessagesTo(Progress):
    """Another display whose lines go to a function."""

    def __init__(self, shown: Progress, say: Callable[[str], None]) -> None:
        self._shown, self._say = shown, say

    def start(self, total: int, done: int) -> None:
        """See `Progress`."""
        self._shown.start(total, done)

    def advance(self, nbytes: int, name: str) -> None:
        """See `Progress`."""
        self._shown.advance(nbytes, name)

    def step(self, name: str, total: int, unit: str) -> None:
        """See `Progress`."""
        self._shown.step(name, total, unit)

    def tick(self, count: int, name: str = "") -> None:
        """See `Progress`."""
        self._shown.tick(count, name)

    def wait(self) -> None:
        """See `Progress`."""
        self._shown.wait()

    def say(self, text: str) -> None:
        """See `Progress`."""
        self._say(text)


def with_messages_to(shown: Progress | None, say: Callable[[str], None] | None) -> Progress:
    """Return a display whose messages go to the function `say`, if given; otherwise the display, or an empty one."""
    display = shown or Progress()
    return display if say is None else _WithMessagesTo(display, say)


def open_display(console: Console, *, quiet: bool) -> Progress:
    """Return the display that suits stderr: a bar for a terminal, lines otherwise, nothing if `quiet`."""
    if quiet:
        return Progress()
    return Bar(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


def _say_continued(console: Console, total: int, done: int) -> None:
    if done:
        _say(console, f"continuing: {size(done)} of {size(total)} were finished by an earlier run")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)
