"""Recipes as callers of the API name them: by name, by path or resolved, with keywords that override values."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

from g4convert.planning.recipe import Recipe
from g4convert.planning.recipe_files import ResolvedRecipe, load
from g4convert.suggestions import no_such

RecipeLike: TypeAlias = str | os.PathLike[str] | ResolvedRecipe
"""The name of a shipped recipe, the path of a YAML file, or what `planning.recipe_files.load` gave."""


class Overrides(TypedDict, total=False):
    """Values of a recipe that a keyword overrides; each is described in docs/reference/recipes.md."""

    num_bits: Literal[4, 8]
    group_size: int | Literal["channel"]
    method: Literal["auto", "minmax", "mse", "lattice", "imatrix", "gptq", "best"]
    signed: bool
    qat: Literal["keep", "recalibrate"]
    pack: Sequence[
        Literal[
            "attention", "mlp", "experts", "ple_projection", "vision_tower", "embedding", "ple_embedding", "lm_head"
        ]
    ]
    bits: Mapping[str, Literal[4, 8, 16]]
    rules: Sequence[Mapping[str, str | int]]
    kv_shared: Literal["drop", "keep"]
    assistant: Literal["keep", "pack"]
    layout: Literal["full", "text-only"]
    max_shard_size: int | str
    engines: Sequence[Literal["transformers", "vllm", "sglang"]]
    carry: Sequence[str]
    leave: Sequence[str]


def resolve_recipe(recipe: RecipeLike, overrides: Overrides) -> ResolvedRecipe:
    """Resolve a recipe, and lay keywords over its values.

    Args:
        recipe: a shipped name, a path, or a resolved recipe, which takes no overrides.
        overrides: values by recipe key.

    Raises:
        UsageError: no such recipe or key, or a value out of range.
    """
    for key in overrides:
        if key not in Overrides.__annotations__:
            raise no_such("keyword", key, Overrides.__annotations__)
    if not isinstance(recipe, ResolvedRecipe):
        return load(os.fspath(recipe), overrides)
    changed = [key for key in overrides if key in Recipe.model_fields]
    return load(recipe.name, {**recipe.settings(), **overrides}) if changed else recipe
