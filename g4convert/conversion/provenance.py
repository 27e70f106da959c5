"""Makes the content of g4convert.json: an output's source, recipe, rounding errors and hashes.

The content depends only on the source, the plan and the statistics, not on clock, host name or local paths, so the same
conversion gives the same bytes on every machine.
"""

from collections.abc import Mapping
from typing import Any

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.result import Summary
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import Resolved

__all__ = ["made_of", "provenance", "recipe_entry", "recipe_name"]


def recipe_name(recipe: Resolved) -> str:
    """Return the recipe's name, or its file's name without the directory, which is private to this machine."""
    return recipe.name.rpartition("/")[2]


def recipe_entry(recipe: Resolved) -> dict[str, Any]:
    """Return the `recipe` entry of g4convert.json."""
    return {"name": recipe_name(recipe), **recipe.settings()}


def made_of(recipe: Resolved, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the `source` and `recipe` entries of g4convert.json."""
    files = {
        name: {key: value for key, value in stamp.items() if key != "mtime_ns"}
        for name, stamp in checkpoint.fingerprint().items()
    }
    return {
        "source": {"name": source.name, "revision": source.revision, "files": files},
        "recipe": recipe_entry(recipe),
    }


def provenance(  # noqa: PLR0913, PLR0917 - it tells of all of them
    recipe: Resolved,
    source: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    summary: Summary,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of g4convert.json: source, recipe, sizes, rounding errors, and hashes of the shards."""
    return {
        "schema_version": 1,
        "g4convert": __version__,
        **made_of(recipe, source, checkpoint),
        "family": plan.architecture.family,
        "dialects": [{"name": use.name, "tensors": use.count} for use in plan.inventory.dialects],
        "dropped": [{"name": drop.source.name, "reason": drop.reason} for drop in plan.dropped],
        "result": summary.to_dict(),
        "files": {name: {"xxh3_128": digest} for name, digest in hashes.items()},
    }
