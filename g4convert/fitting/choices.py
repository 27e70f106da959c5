"""The packings to choose from: `4:32` is int4 in groups of 32, `8:channel` int8 with one scale a row, `16` keeps."""

import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from g4convert.engines.limits import Packing
from g4convert.errors import UsageError
from g4convert.planning.rules import KEPT_BITS

Form: TypeAlias = Packing | None
"""A packing; None keeps the weight's source dtype."""

DEFAULT_CHOICES: Final = ("4:128", "4:64", "4:32", "8:channel", "8:32", "16")
"""Default packings; engines have kernels for all of them."""
KEPT: Final = "kept"
"""Label of a kept weight."""

_CHOICE: Final = re.compile(r"(4|8):(32|64|128|channel)")


def parse_choices(texts: Iterable[str]) -> tuple[Form, ...]:
    """Parse the values of `--choice`, dropping duplicates.

    Raises:
        UsageError: bits other than 4, 8 and 16, or groups other than 32, 64, 128 and channel; names every wrong value.
    """
    forms = {text: _parse_choice(text) for text in texts}
    expected = "expected 4:N or 8:N, with N one of 32, 64, 128 and channel; or 16"
    wrong = [f"{text}: {expected}" for text in forms if text != str(KEPT_BITS) and not _CHOICE.fullmatch(text)]
    if wrong:
        raise UsageError(
            "--choice: packings that no engine has a kernel for",
            offenders=wrong,
            hint=f"the default is {' '.join(f'--choice {choice}' for choice in DEFAULT_CHOICES)}",
        )
    return tuple(dict.fromkeys(forms.values()))


def label_form(form: Form) -> str:
    """Return the label of a packing: `int4 g32`, `kept`."""
    return KEPT if form is None else form.label


def _parse_choice(text: str) -> Form:
    """Parse one value; None if it keeps the weight or is no packing."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    return Packing(int(match[1]), None if match[2] == "channel" else int(match[2]))
