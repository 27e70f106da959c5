"""Refusals of the operating system as errors with a remedy: a full disk, a limit, a device that fails."""

import errno
import os
import re
from typing import Final

from g4convert.errors import EnvironmentFault

NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of errors that say that there is no room for a file."""
FAILED: Final = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO}
"""Numbers of errors of a device, or of the connection to it."""

_HINTS: Final = {
    errno.EACCES: "look at the permissions there, and at the umask",
    errno.EPERM: "look at the permissions there, and at the umask",
    errno.EBUSY: "another program or a mount uses it: name another place, or free it",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit of a file's size: ulimit -f",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENFILE: "the system has too many open files: close other programs, or raise fs.file-max",
    errno.ENOSPC: "free some space, or write to another disk",
    errno.ENOTEMPTY: "another program writes there: stop it, then give the command again",
    errno.EROFS: "write to another disk",
    **dict.fromkeys(FAILED, "the disk or the connection to it failed: see the system's log; then try again"),
}
"""Remedies by the number of the error."""
_NUMBER = re.compile(r"\((?:os error )?(\d{1,3})\)")
"""Number of an error in the message of a library: `(os error 28)` from Rust, `(28)` from torch."""


def refusal(error: OSError, subject: object = "", *, hint: str = "") -> EnvironmentFault:
    """Return an error of the operating system as one of ours.

    Args:
        error: the system's error.
        subject: what it is about; without it the file that `error` names.
        hint: remedy where the table of this module has none for it.
    """
    named = str(subject or error.filename or "")
    text = f"{named}: {error.strerror or error}" if named else f"{error.strerror or error}"
    return EnvironmentFault(text, hint=_HINTS.get(error.errno or 0, hint))


def refusal_within(error: Exception) -> EnvironmentFault | None:
    """Return the operating system's error that the message of a library's error names; None if it names none.

    safetensors and torch raise errors of their own. One counts if it has a number and the system's words for it.
    """
    text = str(error)
    for number in map(int, _NUMBER.findall(text)):
        if number in errno.errorcode and os.strerror(number) in text:
            return EnvironmentFault(f"{type(error).__name__}: {text}", hint=_HINTS.get(number, ""))
    return None
