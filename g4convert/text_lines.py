"""Files of texts and conversations, as users write them: one JSON object a line, or plain text."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from g4convert.bounded import MOST_PROMPTS, read_text
from g4convert.errors import InputError

ROLES: Final = ("system", "user", "assistant", "model")
"""Roles of the messages of a conversation."""
_T = TypeVar("_T")


def read_texts(path: str | Path, hint: str) -> str:
    """Read a whole file of texts.

    Args:
        path: the file.
        hint: form of its lines, for the error.

    Raises:
        InputError: the file cannot be read, is too long, or is not UTF-8.
    """
    try:
        return read_text(Path(path), MOST_PROMPTS)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: not UTF-8 at byte {error.start:,}", hint=hint) from error


def json_lines(text: str) -> list[str]:
    r"""Return the lines of a text: they end with \n alone, as strings of JSON hold other characters that end lines."""
    return text.split("\n")


def parse_lines(lines: Iterable[object], parse: Callable[[int, Any], _T]) -> tuple[list[_T], list[str]]:
    """Parse lines of JSON, or rows that are parsed already.

    Args:
        lines: lines, of which blank ones are left out, or rows.
        parse: makes a value of a line's number and its JSON; raises ValueError, KeyError or TypeError with the reason
            if that is malformed.

    Returns:
        The values, and the malformed lines with the reasons.
    """
    values, malformed = [], []
    for number, line in enumerate(lines, start=1):
        if isinstance(line, str) and not line.strip():
            continue
        try:
            values.append(parse(number, json.loads(line) if isinstance(line, str) else line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            malformed.append(f"line {number}: {error}")
    return values, malformed


def checked_text(content: object) -> str:
    """Return a content; raise ValueError if it is no text, is blank, or has no UTF-8."""
    if not isinstance(content, str) or not content.strip():
        raise ValueError("content must be text that is not empty")
    content.encode()  # half of a surrogate pair is a ValueError; tokenizers fails without a reason
    return content
