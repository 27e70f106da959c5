"""Values that flow between layers, in files: hidden states, keys and values, inputs of a Linear.

    hidden-0.f32, hidden-1.f32     inputs and outputs of a layer, in turns: layer n reads number n % 2
    hidden-original-0.f32, ...     those of the unquantized layers, where both are run
    per-layer.f32, keys-*.f32 ...  written once, read by later layers
    sealed-3.json                  checksums of all arrays that layer 3 or a later layer reads
    scratch-*.f32                  read by no later layer

Arrays are mapped: memory holds the pages in use, and the system may drop the others. Everything is float32: fp16
overflows on this family's activations, and bf16 would round the states at each layer.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from xxhash import xxh3_64

from g4convert.array_types import F32
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.errors import EnvironmentFault, InputError
from g4convert.quantities import size
from g4convert.refusals import refusal
from g4convert.whole_files import write_whole

SCRATCH: Final = "scratch-"
"""Prefix of the names of arrays that no later layer reads."""

_HIDDEN: Final = "hidden-"
_BLOCK: Final = 4 << 20
_MOST: Final = 1 << 20
"""Most bytes of a list of checksums, which names about ten files."""


@dataclass(frozen=True, slots=True)
class States:
    """A directory of float32 arrays.

    Args:
        directory: directory of the files, created with the first array.
        ranks: ranks of one host that map the same files; rank 0 makes them.
    """

    directory: Path
    ranks: Ranks = ALONE

    def make(self, name: str, shape: tuple[int, ...]) -> F32:
        """Make an array of zeros; replace an array of the same name.

        Raises:
            EnvironmentFault: the disk is full.
        """
        self.ranks.wait()  # nobody reads what is replaced
        self.ranks.together(lambda: self._allocate(name, shape) if self.ranks.leads else None)
        return self.open(name, shape)

    def open(self, name: str, shape: tuple[int, ...]) -> F32:
        """Open an existing array.

        Raises:
            InputError: the file is missing or has another size.
        """
        path = self._path(name)
        if path.is_symlink() or not path.is_file() or path.stat().st_size != 4 * int(np.prod(shape)):
            raise InputError(f"{path}: not what an earlier run left there", hint="--overwrite starts again")
        return np.memmap(path, np.float32, "r+", shape=shape)

    def has(self, name: str) -> bool:
        """Return whether an array of this name exists."""
        return self._path(name).is_file()

    def sync(self, *names: str) -> None:
        """Wait until arrays are on disk."""
        for name in names:
            with self._path(name).open("rb") as file:
                os.fsync(file.fileno())

    def turns(self, shape: tuple[int, ...], *, fresh: bool, of: str = "") -> list[F32]:
        """Return the two arrays of hidden states, which layers read and write in turns.

        Args:
            shape: shape of each array.
            fresh: whether to make them anew; otherwise opens those of an earlier run.
            of: a part of their names, for the states of another model.
        """
        get = self.make if fresh else self.open
        return [get(f"{_HIDDEN}{of}{turn}", shape) for turn in range(2)]

    def seal(self, layer: int) -> None:
        """Wait until all arrays that `layer` or a later layer reads are on disk, and write their checksums.

        Arrays that are written once keep the checksum sealed for the layer before.
        """
        before = self._sealed(layer - 1) or {}
        found = {}
        for path in self._read_by(layer):
            again = path.stem.startswith(_HIDDEN) or path.stem not in before
            found[path.stem] = _checksum(path, sync=True) if again else before[path.stem]
        write_whole(self._seal(layer), json.dumps(found))

    def is_sound(self, layer: int) -> bool:
        """Return whether all arrays that `layer` or a later layer reads match their sealed checksums."""
        sealed = self._sealed(layer)
        if not sealed:
            return False
        paths = {path.stem: path for path in self._read_by(layer)}
        return all(name in paths and _checksum(paths[name]) == one for name, one in sealed.items())

    def drop(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _allocate(self, name: str, shape: tuple[int, ...]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        nbytes = 4 * int(np.prod(shape))
        fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            raise refusal(error, f"{self.directory}: no room for {size(nbytes)} of {name}") from error
        finally:
            os.close(fd)

    def _read_by(self, layer: int) -> Iterator[Path]:
        """Yield the files that `layer` or a later layer reads: no scratch, no hidden states that `layer` writes."""
        written = str((layer + 1) % 2)
        for path in sorted(self.directory.glob("*.f32")):
            is_written = path.name.startswith(_HIDDEN) and path.stem.endswith(written)
            if not (path.name.startswith(SCRATCH) or is_written):
                yield path

    def _sealed(self, layer: int) -> Mapping[str, str] | None:
        """Read the sealed checksums by array name; None if the file is missing or malformed."""
        try:
            with self._seal(layer).open("rb") as file:
                found = json.loads(file.read(_MOST))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _seal(self, layer: int) -> Path:
        return self.directory / f"sealed-{layer}.json"

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.f32"


def check_room(directory: Path, need: int) -> None:
    """Raise if the disk is too small, before any work.

    Args:
        directory: directory to write to; its present files count towards `need`.
        need: bytes that the directory will hold.

    Raises:
        EnvironmentFault: the disk has too little free space.
    """
    there = sum(512 * path.lstat().st_blocks for path in directory.rglob("*")) if directory.is_dir() else 0
    disk = next(one for one in (directory.absolute(), *directory.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(disk).free
    if need > free + there:
        raise EnvironmentFault(
            f"{directory}: needs {size(need - there)} for what flows between layers, {size(free)} are free on its disk",
            hint="free some space, or take fewer or shorter samples: `g4convert calibrate --samples N --length N`",
        )


def _checksum(path: Path, *, sync: bool = False) -> str:
    """Return the XXH3 (64 bits) of a file; with `sync`, wait until the file is on disk."""
    digest = xxh3_64()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
