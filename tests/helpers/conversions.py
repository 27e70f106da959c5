"""Runs the product's own pipeline, and reads back what it wrote with the safetensors library."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from g4convert.checkpoint.source import Source
from g4convert.conversion.job import Job, prepare
from g4convert.conversion.ranks import Ranks
from g4convert.conversion.result import Summary
from g4convert.conversion.run import convert
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.recipe_files import load
from g4convert.progress import Progress


def quantized(source: Path, output: Path, recipe: str = DEFAULT, **options: object) -> Summary:
    """Convert a checkpoint with one worker."""
    job = Job(Source.at(source), load(recipe, options), output, workers=1)
    summary = convert(prepare(job), Progress(), Ranks())
    assert summary is not None
    return summary


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, as the safetensors library reads it."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert not tensors.keys() & found.keys()
        found |= tensors
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return True if dtype, shape and every bit are the same, NaNs included."""
    return (
        one.dtype is other.dtype
        and one.shape == other.shape
        and torch.equal(
            one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
        )
    )


def shards(directory: Path) -> Mapping[str, bytes]:
    """The weight files, by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.safetensors"))}
