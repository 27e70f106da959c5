"""Values that flow between layers, in files: hidden states, keys and values, inputs of a Linear.

Arrays are mapped, so memory holds the pages in use and the system may drop the others. Everything is float32: fp16
overflows on this family's activations, and bf16 would round the states at each layer.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from g4convert.errors import InputError
from g4convert.quantities import size

__all__ = ["SCRATCH", "States"]

F32 = NDArray[np.float32]

SCRATCH = "scratch-"
"""Prefix of the names of arrays that no later layer reads."""


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

    def sync(self) -> None:
        """Wait until every array that a later layer reads is on disk."""
        for path in sorted(self.directory.iterdir()):
            if not path.name.startswith(SCRATCH):
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def drop(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.f32"
