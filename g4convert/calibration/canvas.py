"""A picture that is drawn in whole numbers: the same pixels come out everywhere.

    canvas, int64 [height, width, 3] --shapes, in order--> uint8

Shapes are tests of each pixel, and letters are Pillow's bitmap font.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from g4convert.array_types import I64, U8

Colour: TypeAlias = tuple[int, int, int]

_BLACK: Final = (28, 30, 38)


class Canvas:
    """A picture that is being drawn; x goes right, y down.

    Args:
        width: pixels of a row.
        height: number of rows.
        colour: colour of the ground.
        below: colour that the ground has at the bottom; None for one colour.
    """

    def __init__(self, width: int, height: int, colour: Colour, below: Colour | None = None) -> None:
        self._y, self._x = np.mgrid[:height, :width]
        first, last = np.array(colour), np.array(below or colour)
        self._pixels: I64 = first + (last - first) * self._y[..., None] // max(1, height - 1)

    def box(self, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        """Fill a rectangle, without its right and lower edge."""
        self._pixels[top:bottom, left:right] = colour

    def disc(self, x: int, y: int, radius: int, colour: Colour) -> None:
        """Fill a disc."""
        self._pixels[(self._x - x) ** 2 + (self._y - y) ** 2 <= radius**2] = colour

    def shape(self, corners: Sequence[tuple[int, int]], colour: Colour) -> None:
        """Fill a convex shape with corners in clockwise order."""
        inside = np.ones(self._x.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            inside &= (x1 - x0) * (self._y - y0) - (y1 - y0) * (self._x - x0) >= 0
        self._pixels[inside] = colour

    def line(self, corners: Sequence[tuple[int, int]], colour: Colour, width: int = 2) -> None:
        """Draw straight lines from corner to corner."""
        for (x0, y0), (x1, y1) in pairwise(corners):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                x, y = x0 + (x1 - x0) * step // steps, y0 + (y1 - y0) * step // steps
                self.box(
                    max(0, x - width // 2), max(0, y - width // 2), x + (width + 1) // 2, y + (width + 1) // 2, colour
                )

    def words(self, x: int, y: int, text: str, colour: Colour = _BLACK, size: int = 2) -> None:
        """Print words; a letter is 6 x 11 pixels times `size`."""
        sheet = Image.new("1", (6 * len(text), 11))
        ImageDraw.Draw(sheet).text((0, 0), text, fill=1, font=ImageFont.load_default_imagefont())
        big = np.kron(np.asarray(sheet), np.ones((size, size), bool))
        height, width = (min(one) for one in zip(big.shape, (self._x.shape[0] - y, self._x.shape[1] - x), strict=True))
        self._pixels[y : y + height, x : x + width][big[:height, :width]] = colour

    def grain(self, most: int) -> None:
        """Add a grain of at most `most`, as photographs have it; the same each time."""
        mixed = (self._x * 73_856_093 ^ self._y * 19_349_663) * 2_654_435_761 >> 13 & 0xFFFF
        self._pixels += (mixed % (2 * most + 1) - most)[..., None]

    def done(self) -> U8:
        """Return the picture, uint8 [height, width, 3]."""
        return self._pixels.clip(0, 255).astype(np.uint8)
