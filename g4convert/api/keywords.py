"""Errors of the Python functions name keywords, where those of the commands name options.

--engine-timeout 0: expected ...     engine_timeout=0: expected ...
--overwrite, -r NAME, --bits mlp=8   overwrite=True, recipe=NAME, bits={'mlp': 8}
`g4convert calibrate MODEL -o FILE`  stays: it is a command of the shell
"""

import re
from collections.abc import Callable, Collection
from functools import wraps
from inspect import Parameter, signature
from typing import Final, ParamSpec, TypeVar

from g4convert.api.recipes import Overrides
from g4convert.errors import G4Error

P = ParamSpec("P")
R = TypeVar("R")

_SHORT: Final = {"-o": "output", "-r": "recipe"}
_WORDS: Final = "cpu|cuda|resident|stream|auto|mse|gptq|vllm|sglang"
"""Values that are plain words, and may stand before other words."""
_VALUE: Final = rf"[ =](?P<value>(?:{_WORDS})\b|[\w./:@+=-]*[A-Z0-9./][\w./@+=-]*|\w+(?=[:,;]? ?\(|: |$))"
_COMMAND: Final = r"`?(?:g4convert|llama-imatrix) [^`;,]*|`calibrate [^`]*`"
_OPTION: Final = re.compile(rf"{_COMMAND}|(?<![\w-])(?P<option>--[a-z][a-z-]*|-[or]\b)(?:{_VALUE})?")


def keyworded(call: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose errors name its keywords in place of the options of the command."""
    known = signature(call).parameters
    overrides = any(one.kind is Parameter.VAR_KEYWORD for one in known.values())
    names = {*known, *(Overrides.__annotations__ if overrides else ())}
    flags = {name for name, one in known.items() if isinstance(one.default, bool)}

    @wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except G4Error as error:
            error.message, error.hint = (with_keywords(one, names, flags) for one in (error.message, error.hint))
            error.offenders = tuple(with_keywords(one, names, flags) for one in error.offenders)
            raise

    return called


def with_keywords(text: str, names: Collection[str], flags: Collection[str] = ()) -> str:
    """Return a text with keywords in place of options; what is none of the keywords stays.

    Args:
        text: a message of an error, or a hint.
        names: names of the keywords.
        flags: names of those that are true or false.
    """

    def keyword(found: re.Match[str]) -> str:
        option, value = found["option"], found["value"]
        if option is None:
            return found[0]
        name = _SHORT.get(option, option.removeprefix("--").replace("-", "_"))
        if name not in names and name.removeprefix("no_") in flags:
            return f"{name.removeprefix('no_')}=False{found[0].removeprefix(option)}"
        name = name if name in names else f"{name}s"
        if name not in names:
            return found[0]
        if name in flags:
            return f"{name}=True{found[0].removeprefix(option)}"
        key, is_of, bits = (value or "").partition("=")
        return name if value is None else f"{name}={{'{key}': {bits}}}" if is_of else f"{name}={value}"

    return _OPTION.sub(keyword, text)
