"""Renders conversations with a checkpoint's chat template, which is a program from anywhere.

transformers runs it in a sandbox, which bounds each loop and not loops within loops. Here a clock looks at each line
that the template executes. One operation is not interrupted: what a single filter computes is bounded by memory alone.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from jinja2 import TemplateError

from g4convert.errors import InputError

_SECONDS: Final = 10.0
"""Time for one conversation; templates of released models take some milliseconds."""
_TEMPLATE: Final = "<template>"
"""The file name that Jinja gives to compiled templates."""

_FAILS: Final = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of a template: any expression in it may raise what Python raises."""


class _TooLongError(Exception):
    """Raised when a template has had its time."""


def rendered(tokenizer: Any, messages: Iterable[Mapping[str, Any]], *, asks: bool) -> str:  # noqa: ANN401 -- transformers'
    """Put messages into the chat template of a model.

    Raises:
        InputError: the template fails, refuses the messages, tries what the sandbox forbids, takes too long, or gives
            no text.
    """
    try:
        with _clock(_SECONDS):
            text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks))
    except _FAILS as error:
        why = f"fails: {type(error).__name__}: {str(error)[:200]}"
        hint = "restore chat_template.jinja from the model's repository; or it refuses these roles in this order"
        raise InputError(f"the model's chat template {why}", hint=hint) from error
    except _TooLongError as error:
        why = f"takes over {_SECONDS:.0f} s for one conversation"
        raise InputError(
            f"the model's chat template {why}", hint="restore chat_template.jinja from the model's repository"
        ) from error
    if not text:
        raise InputError(
            "the model's chat template gives no text", hint="restore chat_template.jinja from the model's repository"
        )
    return text


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    """End templates that run in this thread meanwhile, when the time is over."""
    ends = time.monotonic() + seconds

    def line(_: FrameType, event: str, __: object) -> Any:  # noqa: ANN401 -- as `sys.settrace` has it
        if event == "line" and time.monotonic() > ends:
            raise _TooLongError
        return line

    def call(frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401 -- the same
        return line if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
