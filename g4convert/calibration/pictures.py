"""Pictures of texts: files of the user's, which must be readable before anything starts, and drawings that ship.

numpy and Pillow are imported where a picture is loaded, as `plan` counts the ids of texts without them.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from g4convert.array_types import U8

NAMED: Final = ("path", "image", "url")
"""Keys of a part that name its file."""
_FAULTS: Final = (OSError, ValueError, SyntaxError, EOFError)
"""Errors of Pillow on files that are no pictures, cut off, or damaged."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a text.

    Args:
        name: file, or name of the drawing.
        load: reads or draws it, uint8 [height, width, 3].
        digest: sha256 of its size and pixels.
    """

    name: str
    load: Callable[[], "U8"] = field(compare=False, repr=False)
    digest: str

    @classmethod
    def of(cls, name: str, load: Callable[[], "U8"]) -> "Picture":
        """Load a picture once for its digest; its pixels are not kept.

        Raises:
            ValueError: it cannot be loaded.
        """
        pixels = load()
        return cls(name, load, sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest())


Find: TypeAlias = Callable[[Mapping[str, Any]], Picture]
"""Returns the picture of a part of a message, {"type": "image", ...}; ValueError says in words why it cannot."""


def draw_named(part: Mapping[str, Any]) -> Picture:
    """Return the drawing that a part of a bundled text names."""
    from g4convert.calibration.drawings import draw  # noqa: PLC0415 -- see above

    name = part["image"]
    return Picture.of(name, lambda: draw(name))


def beside(file: Path) -> Find:
    """Return a function that reads pictures whose paths are relative to a file."""

    def find(part: Mapping[str, Any]) -> Picture:
        given = [part[key] for key in NAMED if part.get(key) is not None]
        if len(given) != 1 or not isinstance(given[0], str) or not given[0]:
            raise ValueError('a picture needs its file: {"type": "image", "path": "FILE"}')
        name = given[0].removeprefix("file://")
        if "://" in name or name.startswith("data:"):
            raise ValueError(f"picture {name[:80]}: pictures are not fetched; save it, and name the file")
        path = file.parent / name
        return Picture.of(name, lambda: read_picture(path, name))

    return find


def none_of_datasets(_: Mapping[str, Any]) -> Picture:
    """Refuse a picture of a dataset that is taken by its name."""
    raise ValueError("pictures of a dataset are not read; save its rows as a .jsonl file, with files of its pictures")


def read_picture(path: Path, name: str) -> "U8":
    """Read a picture file as RGB, uint8 [height, width, 3], turned as its camera was held.

    Raises:
        ValueError: in words why it cannot be read.
    """
    import numpy as np  # noqa: PLC0415 -- here and below: see above
    from PIL import Image, ImageOps  # noqa: PLC0415

    if not path.is_file():
        raise ValueError(f"picture {name}: no such file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (*_FAULTS, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"picture {name}: cannot be read: {why}; replace the file, or leave the line out") from error
