"""Messages about unknown names, in the same words for every option and every recipe."""

import difflib
from collections.abc import Iterable

from g4convert.errors import UsageError

_LEAST_SIMILARITY = 0.65
"""Least similarity of a suggestion: a letter or two may differ; `tensorrt` does not suggest `transformers` (0.6)."""


def not_one_of(known: Iterable[str]) -> str:
    """Return the text that a name is unknown, with the known names."""
    return f"not one of {', '.join(known)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question with the known name that the user probably meant; empty if no name is similar."""
    by_lower = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, _LEAST_SIMILARITY)
    return f"did you mean {by_lower[near[0]]}?" if near else ""


def no_such(subject: str, name: object, known: Iterable[str], hint: str = "") -> UsageError:
    """Return the error for an unknown name.

    Args:
        subject: the option or setting that takes the name.
        name: the given name.
        known: the known names.
        hint: hint if no known name is similar.
    """
    names = list(known)
    return UsageError(f"{subject} {name}: {not_one_of(names)}", hint=suggest(str(name), names) or hint)
