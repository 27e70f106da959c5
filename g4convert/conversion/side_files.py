"""Files of an output beside its shards: their names, and the content of those that need no weight.

Side files of the source, such as tokenizer, processor and chat template, are carried over unchanged. Only README.md
gets another name, as the model card takes it.

The record, g4convert.json, depends only on the source, the plan and the statistics, not on clock, host name or local
paths, so the same conversion gives the same bytes on every machine.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from g4convert import __version__
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.output_names import CARRIED_README, JOURNALS, README
from g4convert.checkpoint.reader import Reader
from g4convert.checkpoint.record import RECORD, record
from g4convert.checkpoint.source import Source
from g4convert.conversion.fingerprint import sample_weights
from g4convert.conversion.result import Summary
from g4convert.conversion.writer import copy_file, write_file
from g4convert.errors import InputError
from g4convert.planning.layout import Layout
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import ResolvedRecipe

_WRITTEN = ("config.json", "model.safetensors.index.json", RECORD, README)
"""Names of the files that every output has beside its shards and side files."""


def carried_as(name: str) -> str:
    """Return a side file's name in the output."""
    return CARRIED_README if name == README else name


def check_side_files(checkpoint: Checkpoint) -> None:
    """Raise if a side file has the name of a journal, or both README.md and its new name are side files."""
    taken = [name for name in checkpoint.side_files if "/" not in name and fnmatch(name, JOURNALS)]
    if {README, CARRIED_README} <= {*checkpoint.side_files}:
        taken.append(CARRIED_README)
    if taken:
        raise InputError(f"{', '.join(taken)}: a name that the output needs", hint="rename the file, or move it away")


def names_of_files(checkpoint: Checkpoint, layout: Layout) -> frozenset[str]:
    """Return the names of all files of the output."""
    return frozenset({*(shard.file for shard in layout.shards), *map(carried_as, checkpoint.side_files), *_WRITTEN})


def write_known(checkpoint: Checkpoint, layout: Layout, config: Mapping[str, Any], directory: Path) -> None:
    """Copy the side files unchanged, then write config.json and the index."""
    for name in checkpoint.side_files:
        target = directory / carried_as(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(checkpoint.path / name, target)
    write_file(directory / "config.json", json_bytes(config))
    write_file(directory / "model.safetensors.index.json", json_bytes(layout.index()))


def json_bytes(value: object) -> bytes:
    """Return `value` as JSON, in the form of all JSON files of an output."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def recipe_name(recipe: ResolvedRecipe) -> str:
    """Return the recipe's name, or its file's name without the directory, which is private to this machine."""
    return recipe.name.rpartition("/")[2]


def recipe_entry(recipe: ResolvedRecipe) -> dict[str, Any]:
    """Return the `recipe` entry of g4convert.json."""
    return {"name": recipe_name(recipe), **recipe.settings()}


def source_and_recipe(recipe: ResolvedRecipe, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the `source` and `recipe` entries of g4convert.json."""
    files = {
        name: {key: value for key, value in stamp.items() if key != "mtime_ns"}
        for name, stamp in checkpoint.fingerprint().items()
    }
    return {
        "source": {"name": source.name, "revision": source.revision, "files": files},
        "recipe": recipe_entry(recipe),
    }


def planned_record(directory: Path, recipe: ResolvedRecipe, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return version, `source` and `recipe` entries, as the g4convert.json of an output would have them.

    A source that was trained further in its place has equal names and sizes. So the source's sample is there, too, if
    `directory` has a record with one, of a source that is the same otherwise: weights are read only then.
    """
    entries = {"g4convert": __version__, **source_and_recipe(recipe, source, checkpoint)}
    existing = {**part(record(directory), "source")}
    if existing.pop("sample", None) is not None and existing == entries["source"]:
        with Reader(checkpoint.path, checkpoint.weight_files) as reader:
            entries["source"] = {**entries["source"], "sample": sample_weights(checkpoint, reader)}
    return entries


def make_record(  # noqa: PLR0913, PLR0917 - it tells of all of them
    recipe: ResolvedRecipe,
    source: Source,
    checkpoint: Checkpoint,
    plan: Plan,
    summary: Summary,
    hashes: Mapping[str, str],
    sample: str,
) -> dict[str, Any]:
    """Return the content of g4convert.json: source, recipe, sizes, rounding errors, and hashes of the shards."""
    entries = source_and_recipe(recipe, source, checkpoint)
    return {
        "schema_version": 1,
        "g4convert": __version__,
        **entries,
        "source": {**entries["source"], "sample": sample},
        "family": plan.architecture.family,
        "dialects": [{"name": use.name, "tensors": use.count} for use in plan.inventory.dialects],
        "dropped": [{"name": drop.source.name, "reason": drop.reason} for drop in plan.dropped],
        "result": summary.to_dict(),
        "files": {name: {"xxh3_128": digest} for name, digest in hashes.items()},
    }
