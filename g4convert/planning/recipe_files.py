"""Reads recipes: a shipped one by name or a file by path, the recipes that it extends, and options laid over them.

`load` records the origin of each value, for `--show-config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from g4convert.bounded import MOST_YAML, read_text
from g4convert.errors import UsageError
from g4convert.places import expand_home
from g4convert.plain_yaml import parse
from g4convert.planning.recipe import DEFAULT, Recipe, RecipeMethod
from g4convert.planning.recipe_faults import make_refusal, show_value
from g4convert.planning.rules import parse_role_bits
from g4convert.suggestions import suggest

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = {
    path.stem: path
    for directory in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")  # installed, and in a checkout
    for path in sorted(directory.glob("*.yaml"))
}

_OPTIONS = {"engines": "--engine", "rules": "keyword rules"}
"""Names for messages of the keys without an option `--key`: rules are given by a keyword in Python only."""


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe, the name or path it was loaded by, and the origin of each value, by key."""

    name: str
    recipe: Recipe
    origins: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Return the recipe's values as JSON, without the description."""
        return self.recipe.model_dump(mode="json", exclude={"description"})


def load_shipped() -> dict[str, Recipe]:
    """Return the recipes shipped with the package, by name."""
    return {name: load(name).recipe for name in _SHIPPED}


def find_method_option(recipe: Recipe, method: RecipeMethod) -> str:
    """Return the option of the command line that changes a recipe's method: a shipped recipe if one is equal."""
    wanted = recipe.model_copy(update={"method": method, "description": ""})
    same = (
        name for name, candidate in load_shipped().items() if candidate.model_copy(update={"description": ""}) == wanted
    )
    return next((f"-r {name}" for name in same), f"--method {method}")


def read_source(name: str) -> tuple[str, str]:
    """Return a recipe's YAML text and its origin: the path, or `recipe NAME` for a shipped recipe.

    Args:
        name: a shipped name, or a path (anything with a slash or ending in .yaml/.yml).

    Raises:
        UsageError: no such recipe, or its file cannot be read.
    """
    if _is_path(name):
        path = expand_home(name)
        if not path.is_file():
            raise UsageError(f"recipe {name}: no such file", hint="`g4convert recipe list` shows the shipped ones")
        try:
            return read_text(path, MOST_YAML), name
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"recipe {name}: cannot be read: {error}") from error
    if name not in _SHIPPED:
        hint = suggest(name, _SHIPPED) or "`g4convert recipe list` shows them; a path works too"
        raise UsageError(f"recipe {name}: not one of the shipped recipes", hint=hint)
    return _SHIPPED[name].read_text(encoding="utf-8"), f"recipe {name}"


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def load(name: str = DEFAULT, options: Mapping[str, object] | None = None) -> ResolvedRecipe:
    """Read a recipe and those it extends, lay options over it, and validate the result.

    Args:
        name: a shipped name or a path.
        options: values from the command line, by recipe key; None means not given.

    Raises:
        UsageError: no such recipe, not YAML, an unknown key, a value out of range, or a recipe that extends itself.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = dict.fromkeys(Recipe.model_fields, "default")
    for origin, layer in reversed(_read_extends_chain(name)):
        values |= {key: _lay_over(key, values.get(key), value) for key, value in layer.items()}
        origins |= dict.fromkeys(layer, origin)
    for key, value in (options or {}).items():
        if value is not None:
            values[key] = _lay_over(key, values.get(key), value)
            origins[key] = _option_for_value(key, value)
    return ResolvedRecipe(name, _validate(name, values, origins), origins)


def _option_for_value(key: str, value: object) -> str:
    """Return the option of the command line that sets a key to this value."""
    return "--positive" if (key, value) == ("signed", False) else _OPTIONS.get(key, f"--{key.replace('_', '-')}")


def _lay_over(key: str, below: object, value: object) -> object:
    """Return `value` laid over `below`: `bits` are merged role by role, any other key is replaced."""
    above = parse_role_bits(value) if key == "bits" else value
    return {**below, **above} if key == "bits" and isinstance(below, dict) and isinstance(above, dict) else above


def _read_extends_chain(name: str) -> list[tuple[str, dict[str, object]]]:
    """Return the YAML mappings of `name` and of each recipe down its `extends` chain, with their origins."""
    layers: list[tuple[str, dict[str, object]]] = []
    seen: dict[str, str] = {}  # place -> the name that it was given
    following: object = name
    while following is not None:
        if not isinstance(following, str):
            raise UsageError(
                f"recipe {[*seen.values()][-1]}: extends is {show_value(following)}, expected a name or a path"
            )
        place = str(expand_home(following).resolve()) if _is_path(following) else following
        if place in seen:
            raise UsageError(f"recipe {name}: extends itself through {' -> '.join([*seen.values(), following])}")
        seen[place] = following
        text, origin = read_source(following)
        layer = dict(_parse_mapping(text, origin))
        base = layer.pop("extends", None)
        layers.append((origin, layer))
        if isinstance(base, str) and base.endswith((".yaml", ".yml")) and "/" in following:
            base = str(Path(following).parent / expand_home(base))
        following = base
    return layers


@lru_cache(maxsize=64)
def _parse_mapping(text: str, origin: str) -> Mapping[str, object]:
    try:
        layer = parse(text) or {}
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        hint = "`g4convert recipe show w4a16-g32` shows one"
        raise UsageError(f"{origin}: not YAML: {where}{why}", hint=hint) from error
    if not isinstance(layer, dict):
        raise UsageError(f"{origin}: holds a {type(layer).__name__}, expected keys and values")
    unknown = [key for key in layer if key not in Recipe.model_fields and key != "extends"]
    if unknown:
        raise UsageError(
            f"{origin}: unknown {'key' if len(unknown) == 1 else 'keys'}",
            offenders=[_suggest(str(key)) for key in unknown],
            hint="`g4convert recipe schema` lists every key",
        )
    return layer


def _suggest(key: str) -> str:
    near = suggest(key, [*Recipe.model_fields, "extends"])
    return f"{key}: {near}" if near else key


def _validate(name: str, values: Mapping[str, object], origins: Mapping[str, str]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise make_refusal(name, error, values, origins) from None  # pydantic's text would come first
