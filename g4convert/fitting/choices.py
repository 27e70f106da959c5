"""Packings that may be chosen: `4:32` is int4 in groups of 32, `8:channel` int8 with a scale a row, `16` is kept."""

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from g4convert.engines.limits import Packing
from g4convert.errors import UsageError
from g4convert.planning.rules import KEPT_BITS

__all__ = ["DEFAULT_CHOICES", "KEPT", "Form", "label_of", "parse_choices"]

Form: TypeAlias = Packing | None
"""A packing; None is a weight that is kept as it is."""

DEFAULT_CHOICES: Final = ("4:128", "4:64", "4:32", "8:channel", "8:32", "16")
"""Packings that are tried unless others are asked for; engines have kernels for all of them."""
KEPT: Final = "kept"
"""Label of a weight that is kept."""

_CHOICE: Final = re.compile(r"(4|8):(32|64|128|channel)")


def parse_choices(texts: Iterable[str]) -> tuple[Form, ...]:
    """The packings that texts mean, each once.

    Raises:
        UsageError: bits other than 4, 8 and 16, or groups other than 32, 64, 128 and channel; names all of them.
    """
    found = {text: _parsed(text) for text in texts}
    expected = "expected 4:N or 8:N, with N one of 32, 64, 128 and channel; or 16"
    wrong = [f"{text}: {expected}" for text in found if text != str(KEPT_BITS) and not _CHOICE.fullmatch(text)]
    if wrong:
        raise UsageError(
            "--choice: packings that no engine has a kernel for",
            offenders=wrong,
            hint=f"the default is {' '.join(f'--choice {one}' for one in DEFAULT_CHOICES)}",
        )
    return tuple(dict.fromkeys(found.values()))


def label_of(form: Form) -> str:
    """The packing in a few words: `int4 g32`, `kept`."""
    return KEPT if form is None else form.label


def _parsed(text: str) -> Form:
    """The packing of a text; None of one that keeps the weight, or is no packing."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    return Packing(int(match[1]), None if match[2] == "channel" else int(match[2]))
