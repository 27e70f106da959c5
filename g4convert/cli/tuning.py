"""`--autotune`: what is refused before a model is loaded, and progress while kernels are measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.progress import Quiet

__all__ = ["Tell", "check", "watch"]

Tell: TypeAlias = Callable[[int, int, str], None]
"""Told how many tiles are done, of how many, and what is worked on."""


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
    """Show a run's progress, told in numbers of tiles."""
    from g4convert import progress

    with progress.watch(console, quiet=quiet) as shown:
        yield _Told(shown)


class _Told:
    """Counts as `forward.tuning` tells them, on a display that wants the number of new ones."""

    def __init__(self, shown: "Quiet") -> None:
        self._shown, self._done = shown, -1

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._done < 0:
            self._shown.step("measuring", total, "tiles")
            self._done = 0
        self._shown.tick(done - self._done, what)
        self._done = done
