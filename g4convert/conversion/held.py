"""Says which conversion an output directory holds, and how it differs from that which would be made there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import record


def describe_existing(directory: Path, made: Mapping[str, Any] | None) -> str:
    """Return words on the conversion that a directory holds, and how it differs; empty without a record."""
    said = record(directory)
    source, recipe = part(said, "source").get("name"), part(said, "recipe").get("name")
    if not source or not recipe:
        return ""
    return f": it holds a conversion of {source} by recipe {recipe}{f' ({_unlike(said, made)})' if made else ''}"


def _unlike(said: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Return in words how a conversion differs from that which would be made, both as g4convert.json has them."""
    recipe, asked = part(said, "recipe"), part(made, "recipe")
    other = {key: value for key, value in asked.items() if key != "name" and key in recipe and recipe[key] != value}
    if other:
        return "; ".join(f"{key} {recipe[key]}, not {value}" for key, value in other.items())
    if said.get("g4convert") != made["g4convert"]:
        return f"by version {said.get('g4convert')}"
    if recipe != asked:
        return f"not by {asked.get('name')}"
    if said.get("source") != made["source"]:
        return "of another source, or before it changed"
    return f"{'of another calibration, or ' if part(said, 'result').get('calibration') else ''}not whole"
