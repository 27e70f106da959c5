"""Reads weight files at offsets, from any thread; used to quantize and to verify.

The first `_MAX_OPEN_FILES` files stay open: by default a process may have only 1024 open files, and a checkpoint can
have 10,000 shards. Other files are opened for each use, which costs some microseconds for 16 MiB. Names are resolved in
the directory as it was opened, so that a directory moved meanwhile stays the same.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from g4convert.checkpoint.naming import naming
from g4convert.errors import InputError

_MAX_OPEN_FILES: Final = 256
"""Largest number of files that stay open."""


class OpenFiles:
    """Open files of one directory."""

    def __init__(self, directory: Path, files: Iterable[str], flags: int) -> None:
        self._flags = flags | os.O_CLOEXEC
        self._fds: dict[str, int] = {}
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, file in enumerate(files):
                fd = os.open(file, self._flags, dir_fd=self._directory)
                if number < _MAX_OPEN_FILES:
                    self._fds[file] = fd
                else:
                    os.close(fd)
        except OSError:
            self.close()
            raise

    @contextmanager
    def opened(self, file: str) -> Iterator[int]:
        """Yield the descriptor of a file, valid within the context.

        Raises:
            OSError: it cannot be opened.
            EnvironmentFault: the device failed meanwhile.
        """
        with naming(file):
            if file in self._fds:
                yield self._fds[file]
                return
            fd = os.open(file, self._flags, dir_fd=self._directory)
            try:
                yield fd
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close every file."""
        for fd in (*self._fds.values(), self._directory):
            os.close(fd)
        self._fds, self._directory = {}, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader(OpenFiles):
    """The weight files of a checkpoint."""

    def __init__(self, directory: Path, files: Iterable[str]) -> None:
        super().__init__(directory, files, os.O_RDONLY)

    def read(self, file: str, begin: int, nbytes: int) -> bytearray:
        """Return bytes [begin, begin + nbytes) of a file.

        Raises:
            InputError: see `read_into`.
            EnvironmentFault: see `read_into`.
        """
        buffer = bytearray(nbytes)
        self.read_into(file, begin, memoryview(buffer))
        return buffer

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `begin` of `file`.

        Raises:
            InputError: the file ends before the range, since it was changed after its header was read.
            EnvironmentFault: the device cannot read it.
        """
        filled = 0
        with self.opened(file) as fd:
            while filled < len(buffer):
                count = os.preadv(fd, [buffer[filled:]], begin + filled)
                if not count:
                    text = f"{file}: ends at byte {begin + filled}, was longer a moment ago"
                    raise InputError(text, hint="start again when nothing writes it")
                filled += count

    def will_need(self, file: str, begin: int, nbytes: int) -> None:
        """Tell the kernel to start reading a range."""
        with self.opened(file) as fd:
            os.posix_fadvise(fd, begin, nbytes, os.POSIX_FADV_WILLNEED)
