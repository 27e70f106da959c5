"""Hashes of weight files: XXH3 of 128 bits, as `xxhsum -H2 FILE` prints it.

They find what disks, memory and copying do by mistake, at some 10 GB/s; they are no signature: who can change a file
can change the hash beside it.
"""

import mmap
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from xxhash import xxh3_128

__all__ = ["file_hash", "file_hashes"]

_BLOCK: Final = 8 << 20


def file_hashes(directory: Path, files: Iterable[str]) -> Mapping[str, str]:
    """Hash files, a few at a time.

    Args:
        directory: directory of the files.
        files: their names.

    Returns:
        32 hexadecimal digits by name, in the order of `files`.
    """
    names = tuple(files)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(lambda name: file_hash(directory / name), names), strict=True))


def file_hash(path: Path) -> str:
    """Hash one file through the page cache, without a copy of its bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = xxh3_128()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                for begin in range(0, size, _BLOCK):
                    with view[begin : begin + _BLOCK] as block:
                        digest.update(block)
    return digest.hexdigest()
