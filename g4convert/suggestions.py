"""Messages about unknown names: the same words for every option and every recipe."""

import difflib
from collections.abc import Iterable

from g4convert.errors import UsageError

__all__ = ["nearest", "no_such", "not_one_of"]

_ALIKE = 0.65
"""Least similarity of a suggestion: a letter or two apart, so that `tensorrt` does not suggest `transformers` (0.6)."""


def not_one_of(known: Iterable[str]) -> str:
    """Return the fault of a name that is not known."""
    return f"not one of {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the known name that was probably meant; empty where none is near."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, _ALIKE)
    return f"did you mean {by_lower[near[0]]}?" if near else ""


def no_such(subject: str, name: object, known: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that is not known.

    Args:
        subject: the thing that takes the name, such as an option.
        name: name that was given.
        known: names that can be given.
        hint: hint for when no known name is near.
    """
    names = list(known)
    return UsageError(f"{subject} {name}: {not_one_of(names)}", hint=nearest(str(name), names) or hint)
