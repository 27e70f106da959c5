"""Runs of the program in forked processes.

The imports and the compiled kernels are there, so a run takes a fraction of a second, and 500 rounds fit into minutes.
Signals during a program's own imports are therefore not met here; `tests/cli/test_hostile.py` has them.
"""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from g4convert.cli import start
from g4convert.cli.start import main
from g4convert.conversion import stream
from g4convert.conversion.journal import Done
from g4convert.planning import units

__all__ = ["DOCUMENTED", "Ended", "Run", "compiled", "fault_of", "many_small_units"]

DOCUMENTED = {0, 1, 2, 3, 4, 5, 75}
"""Exit statuses of docs/guides/verify.md, but for 70, a fault of g4convert's own."""
_STOPS = (signal.SIGINT, signal.SIGTERM)
_ERROR = re.compile(r"^error: ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended.

    Args:
        arguments: its command line.
        status: its exit status; the negative number of the signal that killed it.
        stderr: everything it said there.
    """

    arguments: tuple[str, ...]
    status: int
    stderr: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run that goes on in a process of its own."""

    arguments: tuple[str, ...]
    pid: int
    log: Path

    @classmethod
    def start(cls, arguments: Sequence[str], log: Path) -> "Run":
        """Fork, and run a command line.

        Args:
            arguments: without the program's name.
            log: file for stderr.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # a child that is not yet `_run` is still the harness
        pid = os.fork()
        if not pid:
            _run(arguments, log)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return cls(tuple(arguments), pid, log)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a run that is not waited for keeps its number, so nobody else gets it."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        return Ended(self.arguments, os.waitstatus_to_exitcode(status), self.log.read_text(encoding="utf-8"))


def _run(arguments: Sequence[str], log: Path) -> None:
    """Run `main` in the child, and end it."""
    status = 70
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number in _STOPS:  # as the program's first lines do, which here are long past
            signal.signal(number, start._stop)  # noqa: SLF001 -- the same handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001 -- the judge looks for it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def fault_of(ended: Ended) -> str:
    """Return a run's fault, as far as status and messages show one: empty where there is none."""
    end = ended.stderr[-600:]
    if ended.status == -signal.SIGKILL:
        return ""
    if "Traceback" in ended.stderr:
        return f"a traceback: {end}"
    if ended.status not in DOCUMENTED:
        return f"exit {ended.status}: {end}"
    lines = len(_ERROR.findall(ended.stderr))
    judged = ended.arguments[0] == "verify" and ended.status in {1, 4}  # the report tells, on stdout
    if lines != int(ended.status != 0 and not judged):
        return f"exit {ended.status} with {lines} error lines: {end}"
    return ""


def many_small_units() -> None:
    """Let a tiny model be some hundred units, each of some milliseconds and soon in the journal: much to interrupt."""
    units._UNIT_BYTES = 20_000  # noqa: SLF001 -- no option for users
    stream._SYNC_SECONDS = stream._POLL_SECONDS = 0.002  # noqa: SLF001 -- the same
    done = stream._UnitWorker.do  # noqa: SLF001 -- the same

    def slowly(worker: stream._UnitWorker, unit: units.Unit) -> Done:
        time.sleep(0.002)
        return done(worker, unit)

    stream._UnitWorker.do = slowly  # type: ignore[method-assign]  # noqa: SLF001 -- the same


def compiled(arguments: Sequence[str]) -> None:
    """Run a command line in this process, once, so that what it imports and compiles is there for every fork."""
    with suppress(SystemExit):
        main(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # which a program that ends ignores, and a fork would inherit
        signal.signal(number, signal.default_int_handler)
