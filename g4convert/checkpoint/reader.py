"""Weight files opened once and read at offsets, from any thread: for what quantizes and for what verifies."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from g4convert.errors import InputError

__all__ = ["OpenFiles", "Reader"]


class OpenFiles:
    """Descriptors by file name, closed together."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def close(self) -> None:
        """Close every file."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader(OpenFiles):
    """The weight files of a checkpoint.

    Args:
        directory: the checkpoint.
        files: names of its weight files.
    """

    def __init__(self, directory: Path, files: Iterable[str]) -> None:
        super().__init__()
        self._fds |= {file: os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC) for file in files}

    def fd(self, file: str) -> int:
        """The descriptor of a weight file."""
        return self._fds[file]

    def read(self, file: str, begin: int, nbytes: int) -> bytearray:
        """Bytes [begin, begin + nbytes) of a file.

        Raises:
            InputError: see `read_into`.
        """
        buffer = bytearray(nbytes)
        self.read_into(file, begin, memoryview(buffer))
        return buffer

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `begin` of `file`.

        Raises:
            InputError: the file ends first: it was changed since its header was read.
        """
        filled = 0
        while filled < len(buffer):
            count = os.preadv(self._fds[file], [buffer[filled:]], begin + filled)
            if not count:
                raise InputError(f"{file}: ends at byte {begin + filled}, was longer a moment ago", hint="start again")
            filled += count

    def will_need(self, file: str, begin: int, nbytes: int) -> None:
        """Tell the kernel to start reading a range."""
        os.posix_fadvise(self._fds[file], begin, nbytes, os.POSIX_FADV_WILLNEED)
