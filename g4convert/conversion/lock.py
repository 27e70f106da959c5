"""A lock that lets one run at a time write an output: a lock of the system, released when its owner ends.

    OUT.lock    {"pid": 4711, "host": "node7", "since": "2026-11-28T03:30:00Z", "run": "9f2c..."}

`flock` locks a file beside OUT.partial, since OUT.partial itself is renamed. A killed owner leaves the file, but not
the lock, so the next run takes it. A run removes the file before it releases the lock, so a run that takes the lock
checks that the locked file still has that name.

NFS: Linux sends `flock` to the server as a lock on the whole file, so hosts exclude one another, except on mounts
with `local_lock=flock` or `nolock`. A file system that has no locks at all (Lustre without `-o flock`) still makes a
file once only: there a leftover file counts as that of an owner, and the message says what to delete.
"""

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Self

from g4convert.errors import EnvironmentFault, InputError
from g4convert.places import make_directory
from g4convert.printable import printable
from g4convert.refusals import refusal

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_MAX_LOCK_BYTES: Final = 4096
"""Largest number of bytes read from a lock file."""


class Lock:
    """Lock on one output, a directory or a file; a context manager that releases it on exit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = ""
        """Unique identifier of this run; empty until the lock is taken."""
        self._fd = -1

    @classmethod
    def beside(cls, path: Path) -> Self:
        """Return the lock on what gets the name `path`: a file beside it."""
        return cls(path.with_name(f"{path.name}.lock"))

    def take(self) -> None:
        """Take the lock without waiting, and write this run's owner line into the file.

        Raises:
            EnvironmentFault: another process holds the lock, and is named; or the lock file cannot be made.
            InputError: a file that no run made has the name of the lock file.
        """
        try:
            make_directory(self.path.parent)
            while not self._try_to_lock():
                pass  # the file was removed between opening and locking: its owner has just finished
            self._write()
        except BlockingIOError as error:
            raise self._another_run(_describe_owner(self.path), "wait until it is done, or stop it") from error
        except OSError as error:
            hint = "give -o another directory"
            raise refusal(error, f"{self.path}: cannot be made", hint=hint) from error

    def check(self) -> None:
        """Check that this run still holds the lock; called before OUT.partial is renamed.

        Raises:
            EnvironmentFault: the lock file is gone or belongs to another run.
        """
        if not _is_same(self._fd, self.path) or _read(self.path).get("run") != self.run:
            raise self._another_run(
                _describe_owner(self.path), "nothing was renamed; look at what is beside it before you go on"
            )

    def is_of(self, run: str) -> bool:
        """Return whether the lock file belongs to `run`; for ranks that do not hold the lock."""
        return bool(run) and _read(self.path).get("run") == run

    def release(self) -> None:
        """Remove the lock file, then unlock; does nothing if the lock was not taken."""
        if self._fd < 0:
            return
        if _is_same(self._fd, self.path):
            self.path.unlink()
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self) -> None:
        self.run = token_hex(16)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "run": self.run}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(owner).encode() + b"\n", 0)
        os.fsync(self._fd)

    def _try_to_lock(self) -> bool:
        """Open and lock the file; return False if the path has meanwhile become another file."""
        fd, is_new = _open(self.path)
        try:
            self._lock(fd, is_new=is_new)
        except BaseException:
            os.close(fd)
            raise
        if _is_same(fd, self.path):
            self._fd = fd
            return True
        os.close(fd)
        return False

    def _lock(self, fd: int, *, is_new: bool) -> None:
        """Lock an open file; where the file system has no locks, a file that was just made counts as locked."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _NO_LOCKS and is_new:
                return
            if error.errno in _NO_LOCKS:
                hint = f"this file system has no locks: delete {self.path} if that process is gone"
                raise self._another_run(_describe_owner(self.path), hint) from error
            if is_new:
                self.path.unlink()
            raise refusal(error, f"{self.path}: cannot be locked") from error

    def _another_run(self, owner: str, hint: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self.path.with_suffix('')}: another run writes it: {owner}", hint=hint)


def _open(path: Path) -> tuple[int, bool]:
    """Return a descriptor of the lock file and whether this call made the file; links are not followed."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        fd = os.open(path, flags | os.O_CREAT, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode) or not _is_of_a_run(os.pread(fd, _MAX_LOCK_BYTES + 1, 0)):
        os.close(fd)
        text = f"{path}: no lock of a run has this name, and a run would write over it"
        raise InputError(text, hint="move it away, or give -o another name")
    return fd, False


def _is_of_a_run(data: bytes) -> bool:
    """Return whether a file is one that a run leaves: an owner's line, perhaps damaged, or nothing."""
    return len(data) <= _MAX_LOCK_BYTES and (not data.strip(b"\0") or b'"pid"' in data or b'"run"' in data)


def _is_same(fd: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _read(path: Path) -> Mapping[str, Any]:
    """Return the owner's record in the lock file; empty if there is none or it is not a JSON object."""
    try:
        with path.open("rb") as file:
            owner = json.loads(file.read(_MAX_LOCK_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe_owner(path: Path) -> str:
    owner = _read(path)
    pid, host, since = (printable(str(owner.get(key, "?")))[:80] for key in ("pid", "host", "since"))
    return f"process {pid} on {host}, since {since}"
