"""Start of the program: Ctrl-C or SIGTERM ends it with one line and exit code 75, even during the imports.

Imports take longer than many commands, and Python answers Ctrl-C during an import with a traceback. So this module
imports almost nothing.
"""

import os
import signal
import sys
from collections.abc import Sequence

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_WAITING = ("OMP_WAIT_POLICY", "PASSIVE")
"""Setting that lets torch's threads sleep, not spin, while they wait: on a shared machine, spinning took four times the
processor and wall time. torch reads it once, when it is loaded; a value that the user set stays."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; see `app.main`.

    Args:
        arguments: the command line without the program's name; None uses the arguments of this process.

    Raises:
        SystemExit: always, with the exit status.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    os.environ.setdefault(*_WAITING)
    os.environ.pop("NUMBA_NUM_THREADS", None)  # nothing here uses numba's threads, and it ends on a wrong number
    try:
        from g4convert.cli.app import main as run

        run(arguments)
    except KeyboardInterrupt:
        _end_stopped()
    except Exception as error:  # noqa: BLE001 -- a crash while an error is told: Python's exit 1 would be a verdict
        if (stops := sys.modules.get("g4convert.cli.stops")) and stops.was_asked_to_stop():
            _end_stopped()
        _end_failed(error)
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the exit status is known; there is nothing left to stop


def _stop(*_: object) -> None:
    _end("stopped", 75)


def _end_stopped() -> None:
    """End after a stop that came while the first was printed, or when the command was over, and nothing is printed."""
    from g4convert.cli import stops

    if not stops.was_error_printed():
        _end("stopped", 75)
    os._exit(75)


def _end_failed(error: Exception) -> None:
    match error:
        case MemoryError():
            _end("out of memory", 5)
        case ImportError():
            _end(f"a package cannot be loaded: {error}", 5)
        case _:
            _end_crashed(error)


def _end_crashed(error: Exception) -> None:
    message, hint = f"unexpected {type(error).__name__}", ""
    try:
        from g4convert.cli.crashes import record_crash

        fault = record_crash(error)
        message, hint = fault.message, fault.hint
    finally:  # whatever fails here, too: no memory, no modules, a recursion without end
        _end(message, 70, hint)


def _end(message: str, status: int, hint: str = "") -> None:
    """Print an error and end the process at once, as nothing is open or written that could be lost."""
    try:
        with open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace") as stderr:
            stderr.write(f"error: {' '.join(message.split())}\n" + (f"hint: {hint}\n" if hint else ""))
    finally:  # also where stderr is closed or full
        os._exit(status)
