"""`--autotune`: what is refused before a model is loaded, and progress while kernels are measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Tell", "check", "watch"]

Tell: TypeAlias = Callable[[int, int, str], None]
"""Told how many tiles are done, of how many, and what is worked on."""

_LINE_SECONDS = 5.0


def check(device: str | None, path: Path) -> None:
    """Refuse a device that has no kernels to measure, and a file that cannot be written.

    Raises:
        UsageError: the CPU, or such a file.
        EnvironmentFault: no such GPU, one on which the kernels do not run, or no Triton.
    """
    from g4convert.devices import torch_device
    from g4convert.forward import tuning
    from g4convert.request import DEFAULTS

    tuning.check(torch_device(device or DEFAULTS.device), path)


@contextmanager
def watch(console: "Console", *, quiet: bool) -> Iterator[Tell]:
    """A bar on a terminal, a plain line now and then elsewhere, or nothing."""
    if quiet:
        yield lambda *_: None
    elif console.is_terminal and not console.is_dumb_terminal:
        with _bar(console) as tell:
            yield tell
    else:
        yield _lines(console)


@contextmanager
def _bar(console: "Console") -> Iterator[Tell]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = BarColumn(bar_width=16), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)


def _lines(console: "Console") -> Tell:
    said = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _LINE_SECONDS or done == total:
            said = now
            console.print(f"{done:,} of {total:,} tiles, {what}", markup=False, highlight=False, soft_wrap=True)

    return tell
