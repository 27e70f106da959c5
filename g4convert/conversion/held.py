"""Says which conversion an output directory holds, and how it differs from the one planned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import record


def describe_existing(directory: Path, planned: Mapping[str, Any] | None) -> str:
    """Describe the conversion in a directory, and how it differs from the planned one; empty without a record."""
    existing = record(directory)
    source, recipe = part(existing, "source").get("name"), part(existing, "recipe").get("name")
    if not source or not recipe:
        return ""
    difference = f" ({_describe_difference(existing, planned)})" if planned else ""
    return f": it holds a conversion of {source} by recipe {recipe}{difference}"


def _describe_difference(existing: Mapping[str, Any], planned: Mapping[str, Any]) -> str:
    """Describe how a conversion differs from the planned one, both as g4convert.json has them."""
    recipe, planned_recipe = part(existing, "recipe"), part(planned, "recipe")
    changed = {
        key: value for key, value in planned_recipe.items() if key != "name" and key in recipe and recipe[key] != value
    }
    if changed:
        return "; ".join(f"{key} {recipe[key]}, not {value}" for key, value in changed.items())
    if existing.get("g4convert") != planned["g4convert"]:
        return f"by version {existing.get('g4convert')}"
    if recipe != planned_recipe:
        return f"not by {planned_recipe.get('name')}"
    if existing.get("source") != planned["source"]:
        return "of another source, or before it changed"
    return f"{'of another calibration, or ' if part(existing, 'result').get('calibration') else ''}not whole"
