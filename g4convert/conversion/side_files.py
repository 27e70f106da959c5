"""Files of an output beside its shards: their names, and the content of those that need no weight.

Side files of the source, such as tokenizer, processor and chat template, are carried over unchanged. Only README.md
gets another name, as the model card takes it.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.staging import JOURNALS
from g4convert.conversion.writer import copy_file, write_file
from g4convert.errors import InputError
from g4convert.planning.layout import Layout

__all__ = ["carried_as", "check_side_files", "json_bytes", "names_of_files", "write_known"]

_CARRIED_README = "README.source.md"
"""Name of the source's own README in the output."""
_WRITTEN = ("config.json", "model.safetensors.index.json", "g4convert.json", "README.md")
"""Names of the files that every output has beside its shards and side files."""


def carried_as(name: str) -> str:
    """Return a side file's name in the output."""
    return _CARRIED_README if name == "README.md" else name


def check_side_files(checkpoint: Checkpoint) -> None:
    """Raise if a side file has the name of a journal, or both README.md and its new name are side files."""
    taken = [name for name in checkpoint.side_files if "/" not in name and fnmatch(name, JOURNALS)]
    if {"README.md", _CARRIED_README} <= {*checkpoint.side_files}:
        taken.append(_CARRIED_README)
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
