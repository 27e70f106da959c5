"""Starts the program, so that a stop ends it with one line and exit code 75 from its first import to its last print.

Importing takes longer than many commands, and Python answers Ctrl-C there with a traceback. This module imports next to
nothing.
"""

import os
import signal
from collections.abc import Sequence

__all__ = ["main"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAITING = ("OMP_WAIT_POLICY", "PASSIVE")
"""Threads of torch sleep while they wait for each other, and do not spin: on a machine that others use, too, spinning
took four times the processor and wall time. Read once, when torch is loaded; a value of the user's stays."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; see `app.main`.

    Args:
        arguments: the command line without the program's name; by default that of this process.

    Raises:
        SystemExit: always, with the exit status.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    os.environ.setdefault(*_WAITING)
    try:
        from g4convert.cli.app import main as run

        run(arguments)
    except KeyboardInterrupt:  # another one, while the first was told
        os._exit(75)
    except ImportError as error:
        _end(f"a package cannot be loaded: {error}", 5)
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the status is known; nothing is left to stop


def _stop(*_: object) -> None:
    _end("stopped", 75)


def _end(message: str, status: int) -> None:
    """End the process at once: nothing is open or written yet."""
    with open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace") as stderr:
        stderr.write(f"error: {' '.join(message.split())}\n")
    os._exit(status)
