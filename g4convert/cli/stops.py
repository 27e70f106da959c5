"""Ctrl-C and SIGTERM while a command runs: KeyboardInterrupt, where it can be raised.

An exception in Python's code for locks leaves a lock taken for ever, one in a destructor is printed and dropped, and a
library may make another exception of it. There the stop comes again a moment later, by SIGALRM, until it is raised.
"""

import linecache
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_other_hook = sys.unraisablehook
_asked: set[int] = set()
_printing: list[bool] = []
_AGAIN = 0.005
"""Seconds after which SIGALRM stops again what could not be stopped."""
_LOCKING = {"threading", "queue", "concurrent.futures._base", "concurrent.futures.thread"}
"""Modules that take and release locks in Python: an exception in between, and a lock stays taken for ever."""
_BLOCKED = {"wait", "join", "_wait_for_tstate_lock"}
"""Their functions that wait for other threads, and may be left while they do."""


def listen() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt; signals that the caller ignores, as nohup does, stay ignored."""
    _asked.clear()
    _printing.clear()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _handle_unraisable


def was_asked_to_stop() -> bool:
    """Return whether the program was asked to stop, also if a library turned that into another exception."""
    return bool(_asked)


def note_printing() -> None:
    """Note that an error is about to be printed."""
    _printing.append(True)


def was_error_printed() -> bool:
    """Return whether an error was printed, or is being printed."""
    return bool(_printing)


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.add(number)
    if frame is None or frame.f_globals.get("__name__") not in _LOCKING or _is_blocked(frame):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def _is_blocked(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return frame.f_code.co_name in _BLOCKED and (".acquire(" in line or ".join(" in line)


def _handle_unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    """Handle an exception where none can be raised, as in a destructor: stop again, and print others as usual."""
    if dropped.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        _other_hook(dropped)
