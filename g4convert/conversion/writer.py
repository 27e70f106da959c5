"""Writes bytes at their final offsets: positioned writes, and copies inside the kernel.

Every offset is fixed before the first write, so writes need no order and no lock. Shards are preallocated, which also
finds a full disk before any work is done.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from g4convert.checkpoint.naming import naming
from g4convert.checkpoint.reader import OpenFiles
from g4convert.errors import EnvironmentFault, InputError
from g4convert.planning.layout import Layout

_CHUNK = 8 << 20
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


class ShardWriter(OpenFiles):
    """The output shards, opened once, written at offsets from any thread.

    Args:
        directory: directory of the shards.
        layout: names, sizes and heads of the shards.
        create: True to make and preallocate the shards and write their heads; False to open existing shards.

    Raises:
        OSError: the disk is too small, or a shard to open does not exist.
    """

    def __init__(self, directory: Path, layout: Layout, *, create: bool) -> None:
        if create:
            for shard in layout.shards:
                _preallocate(directory / shard.file, shard.size)
        self._names = [shard.file for shard in layout.shards]
        super().__init__(directory, self._names, os.O_WRONLY)
        if create:
            for shard in layout.shards:
                self.write(shard.file, 0, shard.head)

    def write(self, file: str, begin: int, data: bytes | memoryview) -> None:
        """Write all of `data` at byte `begin` of `file`."""
        view = memoryview(data).cast("B")
        with self.opened(file) as fd:
            while view:
                count = os.pwrite(fd, view, begin)
                view, begin = view[count:], begin + count

    def copy(self, source: int, source_begin: int, nbytes: int, file: str, begin: int) -> None:
        """Copy `nbytes` from a descriptor, inside the kernel where possible.

        Some file systems refuse to copy, others report 0 bytes copied; the bytes are then read and written.

        Raises:
            InputError: the source ends before `nbytes`.
        """
        in_kernel = True
        with self.opened(file) as target:
            while nbytes:
                count = _copy_in_kernel(source, target, nbytes, source_begin, begin) if in_kernel else 0
                if not count:
                    in_kernel = False
                    data = os.pread(source, min(nbytes, _CHUNK), source_begin)
                    self.write(file, begin, data)
                    count = len(data)
                if not count:
                    text = f"source ends at byte {source_begin}, was longer a moment ago"
                    raise InputError(text, hint="start again when nothing writes it")
                source_begin, begin, nbytes = source_begin + count, begin + count, nbytes - count

    def check_in_place(self, directory: Path) -> None:
        """Check that the open files are still the files in `directory` under their names.

        Raises:
            EnvironmentFault: files were moved, deleted or replaced; names all of them.
        """
        wrong = [file for file in self._names if not self._is_at(file, directory / file)]
        if wrong:
            raise EnvironmentFault(
                f"{directory}: files were moved or replaced while they were written",
                offenders=wrong,
                hint="nothing was renamed; --overwrite starts again",
            )

    def sync(self, files: Iterable[str]) -> None:
        """Wait until all bytes written to these files are on disk."""
        for file in files:
            with self.opened(file) as fd:
                os.fdatasync(fd)

    def _is_at(self, file: str, path: Path) -> bool:
        try:
            with self.opened(file) as fd:
                return os.path.samestat(os.fstat(fd), path.lstat())
        except FileNotFoundError:
            return False


def _copy_in_kernel(source: int, target: int, nbytes: int, source_begin: int, begin: int) -> int:
    """Copy inside the kernel; return the number of bytes copied, 0 if the file system refuses."""
    try:
        return os.copy_file_range(source, target, nbytes, source_begin, begin)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        return 0


def _preallocate(path: Path, size: int) -> None:
    """Make a file and preallocate `size` bytes for it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT, 0o644)
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def write_heads(directory: Path, layout: Layout) -> None:
    """Write the head of every shard again."""
    with ShardWriter(directory, layout, create=False) as writer:
        for shard in layout.shards:
            writer.write(shard.file, 0, shard.head)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file and sync it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy a side file and sync it."""
    with naming(target.name):
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
