"""Values that flow between layers, in files: hidden states, keys and values, inputs of a Linear.

    hidden-0.f32, hidden-1.f32     what a layer is given and what it gives, in turns: layer n reads number n % 2
    per-layer.f32, keys-*.f32 ...  written once, read by later layers
    sealed-3.json                  checksums of all that layer 3 and those behind it read
    scratch-*.f32                  read by no later layer

Arrays are mapped, so memory holds the pages in use and the system may drop the others. Everything is float32: fp16
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
from numpy.typing import NDArray
from xxhash import xxh3_64

from g4convert.errors import InputError
from g4convert.quantities import size

__all__ = ["SCRATCH", "States", "check_room"]

F32 = NDArray[np.float32]

SCRATCH: Final = "scratch-"
"""Prefix of the names of arrays that no later layer reads."""

_HIDDEN: Final = "hidden-"
_BLOCK: Final = 4 << 20
_MOST: Final = 1 << 20
"""Bytes of a list of checksums; it names some ten files."""


@dataclass(frozen=True, slots=True)
class States:
    """A directory of float32 arrays.

    Args:
        directory: directory of the files; made with the first.
    """

    directory: Path

    def make(self, name: str, shape: tuple[int, ...]) -> F32:
        """A new array of zeros, in the place of one of this name.

        Raises:
            InputError: the disk is full.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        nbytes = 4 * int(np.prod(shape))
        with self._path(name).open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, nbytes)
            except OSError as error:
                raise InputError(
                    f"{self.directory}: no room for {size(nbytes)} of {name}: {error.strerror}",
                    hint="free some space, or calibrate with fewer or shorter samples",
                ) from error
        return self.open(name, shape)

    def open(self, name: str, shape: tuple[int, ...]) -> F32:
        """An array that was made before.

        Raises:
            InputError: it is not there, or of another size.
        """
        path = self._path(name)
        if not path.is_file() or path.stat().st_size != 4 * int(np.prod(shape)):
            raise InputError(f"{path}: not what an earlier run left there", hint="--overwrite starts again")
        return np.memmap(path, np.float32, "r+", shape=shape)

    def has(self, name: str) -> bool:
        """Return whether an array of this name was made."""
        return self._path(name).is_file()

    def sync(self, *names: str) -> None:
        """Wait until arrays are on disk."""
        for name in names:
            with self._path(name).open("rb") as file:
                os.fsync(file.fileno())

    def turns(self, shape: tuple[int, ...], *, fresh: bool) -> list[F32]:
        """The two arrays of hidden states, which layers read and write in turns.

        Args:
            shape: of each.
            fresh: make them; those of an earlier run are opened otherwise.
        """
        get = self.make if fresh else self.open
        return [get(f"{_HIDDEN}{turn}", shape) for turn in range(2)]

    def seal(self, layer: int) -> None:
        """Wait until all that a layer and those behind it read is on disk, and keep the checksums.

        What is written once has the checksum that it had for the layer before.
        """
        before = self._sealed(layer - 1) or {}
        found = {}
        for path in self._read_by(layer):
            again = path.stem.startswith(_HIDDEN) or path.stem not in before
            found[path.stem] = _checksum(path, sync=True) if again else before[path.stem]
        unfinished = self.directory / "unfinished"
        with unfinished.open("w", encoding="ascii") as file:
            json.dump(found, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._seal(layer))

    def is_sound(self, layer: int) -> bool:
        """True if all that a layer and those behind it read is as it was sealed."""
        sealed = self._sealed(layer)
        if not sealed:
            return False
        paths = {path.stem: path for path in self._read_by(layer)}
        return all(name in paths and _checksum(paths[name]) == one for name, one in sealed.items())

    def drop(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_by(self, layer: int) -> Iterator[Path]:
        """Files that a layer or one behind it reads: all but scratch, and the states that it writes."""
        written = f"{_HIDDEN}{(layer + 1) % 2}"
        for path in sorted(self.directory.glob("*.f32")):
            if not path.name.startswith(SCRATCH) and path.stem != written:
                yield path

    def _sealed(self, layer: int) -> Mapping[str, str] | None:
        """Checksums by name; None where there are none, or not in the form in which they were written."""
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
    """Refuse a disk that is too small, before any work.

    Args:
        directory: what is to grow; what lies there already is part of it.
        need: bytes that it will have.

    Raises:
        InputError: the disk has less room.
    """
    there = sum(512 * path.lstat().st_blocks for path in directory.rglob("*")) if directory.is_dir() else 0
    disk = next(one for one in (directory.absolute(), *directory.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(disk).free
    if need > free + there:
        raise InputError(
            f"{directory}: needs {size(need - there)} for what flows between layers, {size(free)} are free on its disk",
            hint="free some space, or take fewer or shorter samples: `g4convert calibrate --samples N --length N`",
        )


def _checksum(path: Path, *, sync: bool = False) -> str:
    """XXH3 (64 bits) of a file, once it is on disk."""
    digest = xxh3_64()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
