"""Checks before any work: of standard streams, arguments and the current directory.

Streams may be closed, arguments may not be UTF-8, and the current directory may have been deleted.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.printable import printable


def check_streams() -> None:
    """Open closed standard streams on the null device, so that no file of ours gets their numbers.

    Raises:
        EnvironmentFault: standard output is closed, so that no result can be printed.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if 0 in closed:
        sys.stdin = os.fdopen(0, encoding="utf-8")
    if 2 in closed:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    if 1 in closed:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
        raise EnvironmentFault("standard output is closed", hint="send it somewhere: > FILE, or > /dev/null")


def check_arguments(command_line: Sequence[str]) -> None:
    """Raise an error if arguments are not UTF-8, as neither JSON nor YAML can hold their bytes, or name no output.

    Raises:
        UsageError: an argument has such bytes; names all such arguments. Or the output is an empty text, which would
            be the current directory.
    """
    wrong = [
        printable(argument)
        for argument in command_line
        if any(0xDC80 <= ord(character) <= 0xDCFF for character in argument)
    ]
    if wrong:
        raise UsageError(
            "arguments that are not valid UTF-8", offenders=wrong, hint="rename the file, or link to it by another name"
        )
    for option, value in pairwise((*command_line, None)):
        if (option in _OUTPUT and value == "") or option in {f"{name}=" for name in _OUTPUT}:
            raise UsageError(f"{option.removesuffix('=')} is empty", hint="name what to write")


def check_directory() -> None:
    """Check that there is a current directory.

    Raises:
        EnvironmentFault: it was deleted.
    """
    try:
        Path.cwd()  # torch and MKL ask for it whatever paths are given, and end with messages of their own
    except FileNotFoundError as error:
        raise EnvironmentFault("the current directory was deleted", hint="cd to a directory that is there") from error


_OUTPUT: Final = ("-o", "--output")
"""Names of the option that every command that writes has."""


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
