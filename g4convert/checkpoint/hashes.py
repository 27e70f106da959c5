"""Hashes of weight files: XXH3 of 128 bits, as `xxhsum -H2 FILE` prints it.

They find what disks, memory and copying do by mistake, at some 10 GB/s; they are no signature: who can change a file
can change the hash beside it.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from xxhash import xxh3_128

from g4convert.checkpoint.naming import naming
from g4convert.run_options import usable_cores

_BLOCK: Final = 1 << 17
"""Bytes of one read: few enough to stay in a core's cache until they are hashed."""


def file_hashes(directory: Path, files: Iterable[str]) -> Mapping[str, str]:
    """Hash files, a few at a time.

    Returns:
        32 hexadecimal digits by name, in the order of `files`.
    """
    names = tuple(files)
    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(zip(names, pool.map(lambda name: _file_hash(directory / name), names), strict=True))


def _file_hash(path: Path) -> str:
    """Hash one file. It is read, not mapped: a file cut meanwhile gets another hash, and does not crash the process.

    Raises:
        OSError: it cannot be read.
        EnvironmentFault: the device failed.
    """
    digest, buffer = xxh3_128(), bytearray(_BLOCK)
    with naming(path.name), path.open("rb", buffering=0) as file, memoryview(buffer) as view:
        while count := file.readinto(view):
            digest.update(view[:count])
    return digest.hexdigest()
