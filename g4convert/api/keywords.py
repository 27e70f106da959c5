"""Notes on errors of the Python functions: the keywords for the options that an error names.

The text of an error is the one that commands print, so that it can be found in the documentation. In a traceback, a
note follows it:

    UsageError: --tp: no engine has to load the result
    hint: name one: --engine vllm
    in Python: --tp is tp, --engine is engines
"""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Final, ParamSpec, TypeVar

from g4convert.api.recipes import Overrides
from g4convert.errors import G4Error

P = ParamSpec("P")
R = TypeVar("R")

_OPTION: Final = re.compile(r"`\w[^`]*`|(?<![\w-])(--[a-z][a-z-]*|-[or]\b)")
"""An option, but not in a command between backticks, where it belongs to another program or function."""


def add_keyword_notes(call: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose errors have a note with its keywords for the options in their text."""
    parameters = signature(call).parameters
    takes_overrides = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    keywords = dict[str, str]()
    for name in (*parameters, *(Overrides.__annotations__ if takes_overrides else ())):
        option = f"--{name.replace('_', '-')}"
        keyword = f"{name}=True" if name in parameters and parameters[name].default is False else name
        keywords |= {option.removesuffix("s"): keyword, option: keyword, f"--no{option[1:]}": f"{name}=False"}
    keywords |= {"-" + name[0]: name for name in ("output", "recipe") if name in parameters}

    @wraps(call)
    def call_with_notes(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except G4Error as error:
            if note := describe_in_python(str(error), keywords):
                error.add_note(note)
            raise

    return call_with_notes


def describe_in_python(text: str, keywords: Mapping[str, str]) -> str:
    """Name the keywords for the options in a text; empty if none of the options is a keyword.

    Args:
        text: an error, with its offenders and its hint.
        keywords: keywords of a function by option.
    """
    options = dict.fromkeys(_OPTION.findall(text))
    pairs = ", ".join(f"{option} is {keywords[option]}" for option in options if option in keywords)
    return f"in Python: {pairs}" if pairs else ""
