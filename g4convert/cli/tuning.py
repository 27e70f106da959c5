"""`--autotune`: checks before a model is loaded, and progress while kernels are measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.progress import Quiet

__all__ = ["Tell", "check", "watch"]

Tell: TypeAlias = Callable[[int, int, str], None]
"""Function that takes the number of finished tiles, the total, and the name of the current item."""


def check(device: str | None, path: Path) -> None:
    """Check that a device has kernels to measure and that the file can be written.

    Raises:
        UsageError: the device is the CPU, or the file cannot be written.
        EnvironmentFault: no such GPU, a GPU on which the kernels do not run, or no Triton.
    """
    from g4convert.devices import torch_device
    from g4convert.forward import tuning
    from g4convert.request import DEFAULTS

    tuning.check(torch_device(device or DEFAULTS.device), path)


@contextmanager
def watch(console: "Console", *, quiet: bool) -> Iterator[Tell]:
    """Yield a function that shows progress in numbers of tiles."""
    from g4convert import progress

    with progress.watch(console, quiet=quiet) as shown:
        yield _Told(shown)


class _Told:
    """Adapter from the running totals of `forward.tuning` to a display that takes increments."""

    def __init__(self, shown: "Quiet") -> None:
        self._shown, self._done = shown, -1

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._done < 0:
            self._shown.step("measuring", total, "tiles")
            self._done = 0
        self._shown.tick(done - self._done, what)
        self._done = done
