"""Messages about invalid values of a recipe: the place, the value, its origin, and the allowed values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from g4convert.checkpoint.patterns import MOST_PATTERNS
from g4convert.errors import UsageError
from g4convert.planning.rules import Rule
from g4convert.suggestions import no_such, not_one_of, suggest

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_MAX_CHARACTERS: Final = 200
"""Largest number of a value's characters in a message."""
_NESTED_KEYS: Final = {"bits", "rules"}
"""Keys with nested values: an error names the wrong part, such as `rules.1.layers`."""
_EXPECTED: Final = {
    "description": "text",
    "group_size": "a multiple of 8, such as 32, or channel",
    "signed": "true or false",
    "pack": "a list of roles, at least one",
    "bits": "roles and their bits, such as {attention: 8}",
    "rules": "a list of rules, each with bits or a group_size",
    "layers": "layers of the decoder, such as 3, 0-1 or 0,5-7",
    "names": "a pattern of module names, such as *.self_attn.o_proj",
    "max_shard_size": "1KB or more, such as 5GB, 500MB or a number of bytes",
    "engines": "a list of engines",
    "carry": f"at most {MOST_PATTERNS} patterns of file names relative to the model's directory, without . and ..",
    "leave": f"at most {MOST_PATTERNS} patterns of file names relative to the model's directory, without . and ..",
}
"""Allowed values of each key in words, except for keys that take a few fixed names."""
_EXPECTED_OF_OPTIONS: Final = {"bits": "ROLE=BITS, such as attention=8"}
"""Allowed values of the options that are spelled otherwise than in a recipe."""


def make_refusal(
    name: str, error: "ValidationError", values: Mapping[str, object], origins: Mapping[str, str]
) -> UsageError:
    """Return the error that names every wrong value of a recipe, or of an option if only options are wrong."""
    problems = {_find_place(problem): problem for problem in reversed(error.errors())}  # the first error at each place
    keys = [str(problem["loc"][0]) for problem in problems.values()]
    if all(origins[key].startswith("--") for key in keys):
        return _make_option_error(origins[keys[0]], keys[0], values[keys[0]], next(iter(problems.values())))
    return UsageError(
        f"recipe {name}: values that cannot be",
        offenders=[_describe_fault(place, problem, values, origins) for place, problem in reversed(problems.items())],
        hint="`g4convert recipe schema` says what can",
    )


def show_value(value: object) -> str:
    """Format a value for messages."""
    return repr(value)[:_MAX_CHARACTERS]


def _find_place(problem: "ErrorDetails") -> str:
    """Return the wrong key, or the wrong part of a nested value: `rules.1.layers`."""
    key, *parts = map(str, problem["loc"])
    return ".".join((key, *(part for part in parts if part != "[key]"))) if key in _NESTED_KEYS else key


def _describe_fault(
    place: str, problem: "ErrorDetails", values: Mapping[str, object], origins: Mapping[str, str]
) -> str:
    """Return the line for a wrong value: its place, the value, its origin and the allowed values."""
    key = place.partition(".")[0]
    value = problem["input"] if key in _NESTED_KEYS else values[key]
    return f"{place}: {show_value(value)} ({origins[key]}): {_explain_fault(place, problem)}"


def _make_option_error(option: str, key: str, value: object, problem: "ErrorDetails") -> UsageError:
    """Return the error for an invalid value of an option."""
    if names := _list_choices(problem):
        return no_such(option, problem["input"], names)
    words = " ".join(map(str, value)) if value and isinstance(value, list) else value
    return UsageError(
        f"{option} {words}: expected {_EXPECTED_OF_OPTIONS.get(key) or _EXPECTED[key]}"
    )  # hint: the --help


def _explain_fault(place: str, problem: "ErrorDetails") -> str:
    """Return the reason why a value of a recipe is refused."""
    if problem["type"] == "extra_forbidden":
        return f"no key of a rule: {', '.join(Rule.model_fields)}"
    if names := _list_choices(problem):
        near = suggest(str(problem["input"]), names)
        return not_one_of(names) + (f"; {near}" if near else "")
    leaf = next(part for part in reversed(place.split(".")) if part in _EXPECTED)
    return f"expected {_EXPECTED[leaf]}"


def _list_choices(problem: "ErrorDetails") -> list[str]:
    """Return the allowed values if they are a few fixed names; otherwise an empty list."""
    text = problem.get("ctx", {}).get("expected", "") if problem["type"] in {"enum", "literal_error"} else ""
    return [name.strip("'") for name in text.replace(" or ", ", ").split(", ") if name]
