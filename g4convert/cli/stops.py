"""Ctrl-C and SIGTERM while a command runs: KeyboardInterrupt, where it can be raised.

An exception in Python's code for locks leaves a lock taken for ever, one in a destructor is printed and dropped, and a
library may make another exception of it, or drop it, as torch does while it is imported. There the stop comes again a
moment later, by SIGALRM, until the program ends. Code that cleans up after a stop is not stopped again by SIGALRM.
"""

import linecache
import signal
import sys
from contextlib import suppress
from types import FrameType

from g4convert.printable import printable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
_other_hook = sys.unraisablehook
_asked: set[int] = set()
_printing: list[bool] = []
_AGAIN = 0.005
"""Seconds after which SIGALRM stops again what could not be stopped."""
_DROPPED = 0.1
"""Seconds after which SIGALRM looks whether a stop that was raised has been dropped."""
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


def end_alarms() -> None:
    """Let SIGALRM come no more, as the stop has arrived where the program ends."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def print_stop(message: str, hint: str) -> None:
    """Print a stop to stderr, without imports: one that the stop has cut short may fail when it is repeated."""
    lines = f"error: {message}", *([f"hint: {printable(hint)}"] if hint else [])
    with suppress(OSError), open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace") as stderr:
        stderr.write("".join(f"{line}\n" for line in lines))


def note_printing() -> None:
    """Note that an error is about to be printed."""
    _printing.append(True)


def was_error_printed() -> bool:
    """Return whether an error was printed, or is being printed."""
    return bool(_printing)


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.add(number)
    if frame is not None and frame.f_globals.get("__name__") in _LOCKING and not _is_blocked(frame):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        return
    signal.setitimer(signal.ITIMER_REAL, _DROPPED)
    if number != signal.SIGALRM or not _is_on_its_way():
        raise KeyboardInterrupt


def _is_on_its_way() -> bool:
    """Return whether the code that runs handles a stop: it cleans up after one, or passes on what it made of one."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _is_blocked(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return frame.f_code.co_name in _BLOCKED and (".acquire(" in line or ".join(" in line)


def _handle_unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    """Handle an exception where none can be raised, as in a destructor: stop again, and print others as usual."""
    if dropped.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    else:
        _other_hook(dropped)
