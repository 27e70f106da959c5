"""Unexpected exceptions as a fault of g4convert, with the traceback in a temporary file.

This must also work after printing an error has failed, so only the standard library and small modules are imported.
"""

import shlex
import sys
import traceback
from tempfile import NamedTemporaryFile

from g4convert import __version__
from g4convert.errors import InternalFault
from g4convert.printable import printable, printable_lines


def record_crash(error: Exception) -> InternalFault:
    """Write the traceback to a temporary file, and return an InternalFault that names the file.

    Args:
        error: any exception, also one whose text cannot be made.
    """
    summary = "".join(traceback.format_exception_only(error)).strip().removeprefix(f"{type(error).__module__}.")
    message = printable(f"unexpected {summary}")
    text = "".join(traceback.format_exception(error))
    try:
        with NamedTemporaryFile("w", prefix="g4convert-crash-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"g4convert {__version__}: {shlex.join(sys.argv)}\n\n{printable_lines(text)}")
    except OSError as unwritable:
        return InternalFault(message, hint=f"the traceback could not be written either: {unwritable.strerror}")
    return InternalFault(message, hint=f"a fault of g4convert: please report it with the traceback in {file.name}")
