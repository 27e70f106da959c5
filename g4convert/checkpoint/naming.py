"""Adds the file's name, which the system leaves out, to errors while an open file is read or written."""

from collections.abc import Iterator
from contextlib import contextmanager

from g4convert.refusals import FAILED, refusal


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Let errors of the operating system within the context name the file.

    Raises:
        EnvironmentFault: the device failed (EIO), or the connection to it.
        OSError: any other, as a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FAILED:
            error.filename = error.filename or file
            raise
        raise refusal(error, file) from error
