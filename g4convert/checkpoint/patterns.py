"""Patterns of file names, as `--carry` and `--leave` take them.

    *.png           files at the top of the directory
    assets          a file of that name, or all in a directory of that name
    **/*.txt        at any depth
    .gitattributes  hidden files and directories: only if the pattern spells the dot

A pattern is relative to the checkpoint's directory, and its parts are those of `fnmatch`.
"""

from fnmatch import fnmatchcase
from typing import Final

MOST_PATTERNS: Final = 100
_LONGEST: Final = 1000
_ANY: Final = "**"


def fault_of(pattern: str) -> str:
    """Return the reason why a text is not a valid pattern; empty if it is."""
    parts = pattern.split("/")
    if not pattern.isprintable() or len(pattern) > _LONGEST:
        return f"expected at most {_LONGEST} printable characters"
    if pattern.startswith("/") or ".." in parts or "." in parts:
        return "expected a name relative to the model's directory, without . and .."
    return "" if pattern.strip("/") else "expected a name, or a pattern with *"


def is_plain(pattern: str) -> bool:
    """Return whether a pattern has no wildcard, so that it matches one name only."""
    return not any(character in pattern for character in "*?[")


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern matches a file, or a directory that holds the file.

    Args:
        pattern: a valid pattern; see the module.
        name: name of the file, relative to the checkpoint, with slashes.
    """
    parts = pattern.strip("/").split("/")
    places = _skip_any({0}, parts)
    for part in name.split("/"):
        places = _skip_any({after for place in places for after in _places_after(parts, place, part)}, parts)
    return len(parts) in places


def _places_after(parts: list[str], place: int, name: str) -> tuple[int, ...]:
    """Return the places in a pattern after one more part of a name; behind its end is all that a directory has."""
    if place == len(parts) or parts[place] == _ANY:
        return () if name.startswith(".") else (place,)
    hidden = name.startswith(".") and not parts[place].startswith(".")
    return (place + 1,) if not hidden and fnmatchcase(name, parts[place]) else ()


def _skip_any(places: set[int], parts: list[str]) -> set[int]:
    """Return places, and those after a `**`, which may stand for nothing."""
    reached = set(places)
    for place in range(len(parts)):
        if place in reached and parts[place] == _ANY:
            reached.add(place + 1)
    return reached
