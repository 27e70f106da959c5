"""Options of `g4convert quantize` that give a recipe, for commands that are suggested to users."""

from collections.abc import Callable, Iterator, Mapping
from shlex import quote
from typing import Any, Final

from pydantic import ValidationError

from g4convert.planning.recipe import DEFAULT, Recipe
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.quantities import exact_size


def read_recorded(values: Mapping[str, Any]) -> Recipe | None:
    """Return the recipe that an output's record has; None if there is none that is valid."""
    try:
        return Recipe.model_validate({key: value for key, value in values.items() if key != "name"}) if values else None
    except ValidationError:
        return None


def find_options(recipe: Recipe, *files: str) -> str | None:
    """Return the options that give a recipe, each after a blank: `-r` and its differences from that recipe.

    The recipe of `-r` is the shipped one, or the one of `files`, to which the fewest options are added.

    Args:
        recipe: the recipe; its description does not count.
        files: recipe files at hand.

    Returns:
        The options; None if no option sets one of the differences, as for `rules` without the file that has them.
    """
    if (found := find_base(recipe, *files)) is None:
        return None
    name, options = found
    return "".join(f" {option}" for option in ([] if name == DEFAULT else [f"-r {quote(name)}"]) + options)


def find_base(recipe: Recipe, *files: str) -> tuple[str, list[str]] | None:
    """Return the recipe that needs the fewest options to give another, and these options; see `find_options`."""
    found = []
    for name in dict.fromkeys((DEFAULT, *load_shipped(), *files)):
        options = describe_differences(recipe, load(name).recipe)
        if options is not None:
            found.append((name, options))
    return min(found, key=_effort, default=None)


def _effort(base: tuple[str, list[str]]) -> tuple[int, bool, bool]:
    """Return how much is to be typed; of two recipes alike, the one with the bits and the method comes first."""
    name, options = base
    return len(options), any(option.startswith(("--num-bits", "--method")) for option in options), name != DEFAULT


def describe_differences(recipe: Recipe, base: Recipe) -> list[str] | None:
    """Return the options that turn a recipe into another; None if no option sets one of the differences."""
    own, others = _values(recipe), _values(base)
    options: list[str] = []
    for key, value in own.items():
        if value == others[key]:
            continue
        write = _WRITERS.get(key)
        if write is None or not (written := [*write(value, others[key])]):
            return None
        options += written
    return options


def _values(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"description"})


def _write_one(option: str) -> Callable[[Any, Any], Iterator[str]]:
    def write(value: object, _: object) -> Iterator[str]:
        yield f"{option} {quote(str(value))}"

    return write


def _write_each(option: str) -> Callable[[Any, Any], Iterator[str]]:
    def write(values: list[str], _: object) -> Iterator[str]:
        yield from (f"{option} {quote(value)}" for value in values)

    return write


def _write_bits(value: Mapping[str, int], base: Mapping[str, int]) -> Iterator[str]:
    """Yield the bits of each role that differ; nothing if a role of the base has none, which no option can say."""
    if base.keys() <= value.keys():
        yield from (f"--bits {role}={bits}" for role, bits in value.items() if base.get(role) != bits)


def _write_signed(value: bool, _: bool) -> Iterator[str]:  # noqa: FBT001 -- as the others
    yield "--signed" if value else "--positive"


def _write_shard_size(value: int, _: int) -> Iterator[str]:
    yield f"--max-shard-size {exact_size(value)}"


_WRITERS: Final[Mapping[str, Callable[[Any, Any], Iterator[str]]]] = {
    "num_bits": _write_one("--num-bits"),
    "group_size": _write_one("--group-size"),
    "method": _write_one("--method"),
    "signed": _write_signed,
    "pack": _write_each("--pack"),
    "bits": _write_bits,
    "kv_shared": _write_one("--kv-shared"),
    "assistant": _write_one("--assistant"),
    "layout": _write_one("--layout"),
    "max_shard_size": _write_shard_size,
    "engines": _write_each("--engine"),
    "carry": _write_each("--carry"),
    "leave": _write_each("--leave"),
}
"""The options of each key that has some, from its value and that of the recipe below."""
