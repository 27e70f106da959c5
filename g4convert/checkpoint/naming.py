"""Adds the file's name, which the system leaves out, to failures of a device while a file is read or written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from g4convert.errors import EnvironmentFault

__all__ = ["naming"]

_FAILED: Final = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO}


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Turn a failure of the device within the context into an error that names the file.

    Args:
        file: name of the file.

    Raises:
        EnvironmentFault: the device failed (EIO), or the connection to it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILED:
            raise
        hint = "the disk or the connection to it failed: see the system's log; then the same command may go on"
        raise EnvironmentFault(f"{file}: {error.strerror}", hint=hint) from error
