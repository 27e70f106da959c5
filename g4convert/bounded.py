"""Reader of untrusted files with a size limit, so that a file cannot fill the memory.

Recipes, profiles, prompts, configs and indexes come from anywhere. Each kind has a limit that no real file reaches; no
more bytes are read, whatever size the file system reports.
"""

import errno
from pathlib import Path
from typing import Final

from g4convert.errors import InputError

MOST_YAML: Final = 1 << 20
"""Limit of a recipe or a profile in bytes: 1 MiB; the longest shipped file has a thousandth of it."""
MOST_PROMPTS: Final = 64 << 20
"""Limit of a file of prompts in bytes: 64 MiB."""
MOST_CONFIG: Final = 256 << 20
"""Limit of a config or an index in bytes: 256 MiB; 10,000 shards with a million tensors need a third of it."""
NOT_READABLE: Final = "check the file's owner and permissions"
"""Remedy for a file that the user may not read."""


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file.

    Args:
        path: the file; a pipe is read to its end.
        most: limit in bytes.

    Raises:
        InputError: the user may not read the file.
        OSError: the file cannot be read otherwise, or is longer (EFBIG).
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read: permission denied", hint=NOT_READABLE) from error
    if len(data) > most:
        raise OSError(errno.EFBIG, f"over {most >> 20} MiB, the most that is read", str(path))
    return data


def read_text(path: Path, most: int) -> str:
    r"""Read a whole file as UTF-8; lines end with \n, whatever ends them in the file, and no BOM begins the text.

    Args:
        path: the file.
        most: limit in bytes.

    Raises:
        InputError: see `read_bytes`.
        OSError: see `read_bytes`.
        UnicodeDecodeError: the file is not UTF-8.
    """
    text = read_bytes(path, most).decode().removeprefix("\N{BYTE ORDER MARK}")
    return text.replace("\r\n", "\n").replace("\r", "\n")
