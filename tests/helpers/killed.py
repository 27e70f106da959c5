"""A calibrated conversion in a process of its own, which kills itself at a given place as `kill -9` would."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from helpers.ranked import LOADED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Place", "killed"]

_WATCHED = {
    "layer": "g4convert.calibration.run:LayerByLayer._layer",
    "step": "g4convert.calibration.distill:Distillation._slopes",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A call at which a run dies.

    Args:
        function: `module:name`, or `module:Class.name`.
        at: number of the call, from 1.
        after: whether it dies when the call has returned; otherwise before it does anything.
    """

    function: str
    at: int
    after: bool = False


def killed(place: Place, source: Path, output: Path, ids: Path, log: Path) -> list[str]:
    """Run `best` up to `place`, with the state of the training saved after each step.

    Returns:
        The layers (`layer 0`) and steps of training (`step`) that it began, in order.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*LOADED])  # as ranks have it: one server for all tests
    log.write_text("")
    process = context.Process(target=_run, args=(place, source, output, ids, log))
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, f"{place}: ended with {process.exitcode}"
    return log.read_text().splitlines()


def _run(place: Place, source: Path, output: Path, ids: Path, log: Path) -> None:
    from g4convert.calibration import distill  # noqa: PLC0415 -- once the server has it
    from g4convert.calibration.run import LayerByLayer  # noqa: PLC0415
    from g4convert.checkpoint.source import Source  # noqa: PLC0415
    from g4convert.conversion.job import Job, prepare  # noqa: PLC0415
    from g4convert.conversion.ranks import Ranks  # noqa: PLC0415
    from g4convert.conversion.run import convert  # noqa: PLC0415
    from g4convert.planning.recipe_files import load  # noqa: PLC0415
    from g4convert.progress import Progress  # noqa: PLC0415

    os.fsync = os.fdatasync = lambda _: None  # as in all tests: no power is cut
    for word, function in _WATCHED.items():
        _put(function, lambda real, word=word: _noting(real, log, word))
    _put(place.function, lambda real: _dying(real, place))
    distill._KEPT = 1  # noqa: SLF001 -- a test's
    conversion = prepare(Job(Source.at(source), load("w4a16-g32-best"), output, workers=2, calibration=ids))
    convert(conversion, Progress(), Ranks(), LayerByLayer.of(conversion, ids))


def _put(function: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function by what `wrap` makes of it."""
    module, _, path = function.partition(":")
    owner: Any = import_module(module)
    *classes, name = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    setattr(owner, name, wrap(getattr(owner, name)))


def _noting(real: Callable[..., Any], log: Path, word: str) -> Callable[..., Any]:
    def call(*given: Any) -> Any:  # noqa: ANN401 -- stands for any function
        with log.open("a") as file:
            file.write(f"{word} {given[1]}\n" if word == "layer" else f"{word}\n")
        return real(*given)

    return call


def _dying(real: Callable[..., Any], place: Place) -> Callable[..., Any]:
    left = [place.at]

    def call(*given: Any, **more: Any) -> Any:  # noqa: ANN401 -- stands for any function
        left[0] -= 1
        if not left[0] and not place.after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*given, **more)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return call
