"""Ends the process with one line when a mapped file cannot be read.

Reading a mapped page that the device fails to give, or that lies behind the end of a file which was cut meanwhile, is
no error that Python sees: the kernel sends SIGBUS, which ends the process without a word. A handler in machine code
prints the line and exits; no Python runs in it, as the signal may interrupt any thread in any library.
"""

import ctypes
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Final

import numba

from g4convert.errors import EnvironmentFault
from g4convert.printable import printable

_STDERR: Final = 2
_BUFFER_BYTES: Final = 4096
_LINES: Final = ctypes.create_string_buffer(_BUFFER_BYTES)
_MUTEX: Final = ctypes.create_string_buffer(128)  # larger than pthread_mutex_t of Linux (40 bytes) and of macOS (64)
_opened: Final[dict[Path, None]] = {}


def tell_faults(directory: Path) -> None:
    """Print two lines and exit 5 if a mapped file cannot be read from here on; a handler of SIGBUS that is set is kept.

    Several threads may meet the fault at the same time: the first prints, the others wait until the process ends.

    Args:
        directory: the checkpoint; the lines name all that were opened.
    """
    if directory in _opened:
        return
    _opened[directory] = None
    names = " or ".join(printable(str(one)) for one in _opened)
    show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""  # a bar hides the cursor
    text = f"{show_cursor}error: {names}: a file cannot be read: Input/output error, or it was cut meanwhile\n"
    hint = "hint: the disk or the connection to it failed: see the system's log; then the same command may go on\n"
    _LINES.value = f"{text}{hint}".encode(errors="replace")[: _BUFFER_BYTES - 1]
    if not _is_handled():
        _install()


def _is_handled() -> bool:
    """Return whether SIGBUS has a handler; Python knows of its own only, and not of `faulthandler`'s."""
    action = ctypes.create_string_buffer(_BUFFER_BYTES)  # struct sigaction, which begins with the handler
    ctypes.CDLL(None).sigaction(signal.SIGBUS, None, action)
    return any(action.raw[: ctypes.sizeof(ctypes.c_void_p)])


@cache
def _install() -> object:
    """Set the handler; returns it, so that it is never freed."""
    libc = ctypes.CDLL(None)
    write, length, lock, leave = libc.write, libc.strlen, libc.pthread_mutex_lock, libc._exit  # noqa: SLF001 -- C's name
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t), ctypes.c_long
    length.argtypes, length.restype = (ctypes.c_size_t,), ctypes.c_size_t
    lock.argtypes, lock.restype = (ctypes.c_size_t,), ctypes.c_int
    leave.argtypes, leave.restype = (ctypes.c_int,), None
    libc.pthread_mutex_init(_MUTEX, None)
    address, mutex, status = ctypes.addressof(_LINES), ctypes.addressof(_MUTEX), EnvironmentFault.exit_code

    def fault(_: int) -> None:
        lock(mutex)
        write(_STDERR, address, length(address))
        leave(status)

    handler = numba.cfunc("void(int32)")(fault)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGBUS, handler.address)
    return handler
