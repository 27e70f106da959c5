"""Escapes for text from a file, a name or a server, which make it safe to print.

A name may hold escape sequences that a terminal obeys, bidirectional controls that reorder text, or a newline that
forges another line of output. All printed text passes through here; ordinary characters stay unchanged.
"""

import re
from typing import Final

_BIDI: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_BREAKS: Final = "\u2028\u2029"
_CONTROLS: Final = re.compile(f"[\x00-\x1f\x7f-\x9f{_BIDI}{_BREAKS}\ud800-\udfff]")
_BUT_NEWLINES: Final = re.compile(f"[\x00-\x09\x0b-\x1f\x7f-\x9f{_BIDI}{_BREAKS}\ud800-\udfff]")
_NAMED: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    """Return text on one line, with control characters written as escapes."""
    return _CONTROLS.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return text with control characters written as escapes, newlines kept."""
    return _BUT_NEWLINES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    return _NAMED.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
