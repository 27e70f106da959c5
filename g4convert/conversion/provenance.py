"""Writes what an output says of itself in g4convert.json: its provenance and errors.

Everything here is a function of the plan and the statistics: no clock, no host name, no path of the machine, so
the same conversion gives the same bytes wherever and however it runs.
"""

from collections.abc import Mapping
from typing import Any

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.result import Summary
from g4convert.planning.recipe import Resolved
from g4convert.planning.steps import Plan

__all__ = ["CARRIED_README", "made_of", "provenance", "recipe_name"]

CARRIED_README = "README.source.md"
"""Name of the source's own README in the output, as README.md is the model card."""


def recipe_name(recipe: Resolved) -> str:
    """The recipe's name, or its file's: where that lies on this machine is nobody's business."""
    return recipe.name.rpartition("/")[2]


def made_of(recipe: Resolved, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an output comes from, as g4convert.json says it: `source` and `recipe`."""
    files = {
        name: {key: value for key, value in stamp.items() if key != "mtime_ns"}
        for name, stamp in checkpoint.fingerprint().items()
    }
    return {
        "source": {"name": source.name, "revision": source.revision, "files": files},
        "recipe": {"name": recipe_name(recipe), **recipe.settings()},
    }


def provenance(  # noqa: PLR0913, PLR0917 - it tells of all of them
    recipe: Resolved,
    source: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    summary: Summary,
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """The content of g4convert.json: where the output comes from, what it cost, and hashes of its shards."""
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
