"""Random damages to files: bits, zeros, cuts, files that go, come, or change places, and text that is no text."""

import os
import random
from pathlib import Path

__all__ = ["damage", "damage_text"]

_FLIPS = 100


def damage(path: Path, chance: random.Random) -> str:
    """Do one thing to a file.

    Returns:
        Its name.
    """
    kind = chance.choice(("flip", "flips", "cut", "remove", "add", "zero", "repeat", "link"))
    size = path.stat().st_size
    match kind:
        case "flip" | "flips" | "zero":
            for _ in range(1 if kind == "flip" else _FLIPS):
                _change(path, chance.randrange(max(size, 1)), None if kind == "zero" else chance.randrange(8))
        case "cut":
            os.truncate(path, chance.randrange(max(size, 1)))
        case "remove":
            path.unlink()
        case "add":
            path.with_name("stray").write_text("not ours", encoding="utf-8")
        case "repeat":
            with path.open("ab") as file:
                file.write(path.read_bytes()[: 1 << 20])
        case "link":
            path.unlink()
            path.symlink_to(os.devnull)
    return kind


def _change(path: Path, at: int, bit: int | None) -> None:
    """Flip a bit of one byte, or make it zero."""
    with path.open("r+b") as file:
        file.seek(at)
        value = file.read(1)
        if value:
            file.seek(at)
            file.write(bytes([0 if bit is None else value[0] ^ 1 << bit]))


_TOKENS = (
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "\n",
    "\0",
    "\x1b[2J",
    "null",
    "NaN",
    "1e999",
    "-1",
    "9" * 400,
    "true",
    "&a",
    "*a",
    "- ",
)


def damage_text(text: str, chance: random.Random) -> str:
    """Return a text with one to four changes: pieces removed, repeated, moved, or put in."""
    for _ in range(chance.randint(1, 4)):
        one, two = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        piece = text[one:two]
        match chance.choice(("remove", "repeat", "put", "swap", "nest")):
            case "remove":
                text = text[:one] + text[two:]
            case "repeat":
                text = text[:two] + piece * chance.choice((1, 2, 50)) + text[two:]
            case "put":
                text = text[:one] + chance.choice(_TOKENS) + text[one:]
            case "swap":
                text = text[:one] + chance.choice(_TOKENS) + text[two:]
            case "nest":
                depth = chance.choice((3, 2_000, 200_000))
                text = text[:one] + "[" * depth + "]" * depth + text[one:]
    return text
