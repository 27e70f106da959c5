"""Pictures in rows of token ids: the patches that a model's processor cuts them into, as a calibration file has them.

    pictures.pixels     uint8 [p, v]         patches of all pictures, one after the other; 255 is 1.0
    pictures.positions  int32 [p, 2]         x and y of each patch in its picture
    pictures.rows       int32 [pictures, 2]  row of each picture, and the number of its patches

Pictures have the order of their placeholders in the rows. Patches are kept, not files, so that a file is of use where
neither the pictures nor the libraries are that resized them; and not soft tokens, which are three times as large.

Letters: p patches, v values of a patch.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import I32, U8

PREFIX: Final = "pictures."
_PIXELS, _POSITIONS, _ROWS = (f"{PREFIX}{name}" for name in ("pixels", "positions", "rows"))


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """One picture as its model takes it.

    Args:
        pixels: patches, 255 is 1.0, uint8 [p, v].
        positions: x and y of each patch, int32 [p, 2].
        soft_tokens: number of placeholders.
    """

    pixels: U8
    positions: I32
    soft_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures of some rows.

    Args:
        pixels: patches of all pictures, uint8 [p, v].
        positions: x and y of each patch, int32 [p, 2].
        rows: row and number of patches of each picture, int32 [pictures, 2]; rows do not fall.
    """

    pixels: U8
    positions: I32
    rows: I32

    @classmethod
    def of(cls, by_row: Sequence[Sequence[Patches]]) -> "Pictures | None":
        """Return the pictures of all rows, given in the order of their placeholders; None if no row has any."""
        numbered = [(row, picture) for row, pictures in enumerate(by_row) for picture in pictures]
        if not numbered:
            return None
        return cls(
            np.concatenate([picture.pixels for _, picture in numbered]),
            np.concatenate([picture.positions for _, picture in numbered]),
            np.array([(row, len(picture.pixels)) for row, picture in numbered], np.int32),
        )

    @classmethod
    def taken_from(cls, arrays: dict[str, NDArray[Any]]) -> "Pictures | None":
        """Take the pictures' tensors out of those of a file; None if it has none.

        Raises:
            ValueError: a tensor is missing, or has another dtype, shape or value than it can have.
        """
        if not any(name.startswith(PREFIX) for name in arrays):
            return None
        pixels, positions, rows = (arrays.pop(name, None) for name in (_PIXELS, _POSITIONS, _ROWS))
        if pixels is None or positions is None or rows is None:
            raise ValueError("pictures without pixels, positions or rows")
        dtypes = [array.dtype for array in (pixels, positions, rows)]
        if (
            dtypes != [np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.int32)]
            or pixels.ndim != 2
            or positions.shape != (len(pixels), 2)
            or rows.shape != (len(rows), 2)
        ):
            raise ValueError("pictures of another form")
        counts, in_row = rows[:, 1].astype(np.int64), rows[:, 0]
        if (
            not len(rows)
            or counts.min() < 1
            or counts.sum() != len(pixels)
            or in_row[0] < 0
            or (np.diff(in_row) < 0).any()
        ):
            raise ValueError("pictures whose patches or rows cannot be")
        if positions.min() < 0:
            raise ValueError("pictures with negative positions")
        return cls(pixels, positions, rows)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the tensors of a calibration file."""
        return {_PIXELS: self.pixels, _POSITIONS: self.positions, _ROWS: self.rows}

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.rows)

    @property
    def in_rows(self) -> frozenset[int]:
        """Numbers of the rows with pictures."""
        return frozenset(self.rows[:, 0].tolist())

    @property
    def hash(self) -> str:
        """SHA-256 over rows, positions and pixels."""
        digest = sha256()
        for array in (self.rows.astype("<i4"), self.positions.astype("<i4"), self.pixels):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def of_row(self, row: int) -> Iterator[tuple[U8, I32]]:
        """Yield pixels [p, v] and positions [p, 2] of each picture of a row, in order."""
        ends = np.cumsum(self.rows[:, 1], dtype=np.int64)
        for (number, count), end in zip(self.rows, ends, strict=True):
            if number == row:
                yield self.pixels[end - count : end], self.positions[end - count : end]

    def without(self, rows: Collection[int], samples: int) -> "Pictures | None":
        """Return the pictures of the other rows, which get the numbers that they have without `rows`."""
        remaining = [row for row in range(samples) if row not in rows]
        return Pictures.of([[Patches(*picture, 0) for picture in self.of_row(row)] for row in remaining])
