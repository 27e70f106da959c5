"""Reads files of which nothing is known without letting them fill the memory.

A recipe, a profile, prompts, a config and an index come from anywhere. Each has a size above which it is not one of
these; more than that is not read, whatever the file says of its size.
"""

import errno
from pathlib import Path
from typing import Final

__all__ = ["MOST_CONFIG", "MOST_PROMPTS", "MOST_YAML", "read_bytes", "read_text"]

MOST_YAML: Final = 1 << 20
"""Bytes of a recipe or a profile: 1 MiB; the longest that ships has a thousandth."""
MOST_PROMPTS: Final = 64 << 20
"""Bytes of a file of prompts: 64 MiB."""
MOST_CONFIG: Final = 256 << 20
"""Bytes of a config or an index: 256 MiB; 10,000 shards with a million tensors have a third."""


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file.

    Args:
        path: the file; a pipe is read to its end.
        most: bytes that are read.

    Raises:
        OSError: it cannot be read, or has more (EFBIG).
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"over {most >> 20} MiB, the most that is read", str(path))
    return data


def read_text(path: Path, most: int) -> str:
    """Read a whole file as UTF-8.

    Args:
        path: the file.
        most: bytes that are read.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode()
