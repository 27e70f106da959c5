"""Completion of names in a shell: of recipes, of profiles, and of values of a recipe.

Names are looked up when the shell asks, as the modules that have them are slow to import. Where no name fits, shells
complete the names of files.
"""

from collections.abc import Callable
from typing import get_args


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes whose names begin with what was typed."""
    from g4convert.planning.recipe_files import load_shipped

    return _starting_with(incomplete, *load_shipped())


def complete_profile(incomplete: str) -> list[str]:
    """Return the profiles of level `logits` whose names begin with what was typed."""
    from g4convert.verification.profiles import shipped

    return _starting_with(incomplete, *shipped())


def complete_engine(incomplete: str) -> list[str]:
    """Return the engines whose names begin with what was typed."""
    from g4convert.planning.recipe import EngineName

    return _starting_with(incomplete, *EngineName)


def complete_bits(incomplete: str) -> list[str]:
    """Return `ROLE=` for the roles whose names begin with what was typed, and `ROLE=N` behind the sign."""
    from g4convert.planning.rules import Bits, PackRole

    role, equals, _ = incomplete.partition("=")
    if equals:
        return _starting_with(incomplete, *(f"{role}={bits}" for bits in get_args(Bits)))
    return _starting_with(incomplete, *(f"{role.value}=" for role in PackRole))


def complete_value(key: str) -> Callable[[str], list[str]]:
    """Return the completion of a value of a recipe that is one of several names, by its key."""

    def complete(incomplete: str) -> list[str]:
        from g4convert.planning.recipe import Recipe, RecipeMethod
        from g4convert.planning.rules import PackRole

        enums = {"method": RecipeMethod, "pack": PackRole}
        return _starting_with(incomplete, *(enums.get(key) or get_args(Recipe.model_fields[key].annotation)))

    return complete


def _starting_with(incomplete: str, *names: str) -> list[str]:
    return [str(name) for name in names if name.startswith(incomplete)]
