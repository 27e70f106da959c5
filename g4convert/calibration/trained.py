"""Trained scales, saved in one file and then written into the shards of a complete output.

    states/scales.safetensors   scales, the journal's lines of the layers, and digests of the codes they belong to
    shards, journal             layer by layer

A kill during writing leaves a half-written layer. The file has the scales of all layers, so the same command writes
every layer again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from xxhash import xxh3_64

from g4convert.array_types import F32
from g4convert.calibration.distill import replace_file
from g4convert.calibration.rounding import codes_of, stats_of
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.job import Conversion
from g4convert.conversion.journal import Done
from g4convert.conversion.result import MethodChoice
from g4convert.conversion.resume import checksum
from g4convert.conversion.stream import Streams
from g4convert.planning.plan import Quantize
from g4convert.planning.units import QuantizeTask, Unit
from g4convert.quantization import Method, TileStats
from g4convert.quantization.torch_tiles import TORCH_DTYPES

SCALES: Final = "scales"
"""Key of the training's gain in the description of a weight's rounding."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The trained scales of a conversion.

    Args:
        conversion: conversion with all layers in OUT.partial.
        file: file that keeps the scales until they are written into the shards.
    """

    conversion: Conversion
    file: Path

    def exists(self) -> bool:
        """Return whether the training has ended and its scales are saved."""
        return self.file.exists()

    def is_of_codes_there(self) -> bool:
        """Return whether the scales were trained for the codes in OUT.partial."""
        with safe_open(self.file, "pt") as file, self._written() as written:
            words = json.loads(file.metadata()["words"])
            return all(_words(self.conversion.units[int(unit)], written) == digest for unit, digest in words.items())

    def drop(self) -> None:
        """Remove the file."""
        self.file.unlink()

    def keep(
        self,
        rows: Mapping[int, list[Any]],
        scales: Mapping[str, torch.Tensor],
        gained: Mapping[str, Any],
        streams: Streams,
    ) -> None:
        """Save everything that `write` needs.

        Args:
            rows: statistics of the layers' units before the training.
            scales: trained scales by name, bf16 [n, groups].
            gained: gain of the training, as JSON.
            streams: source files.
        """
        with self._written() as written:
            units = {
                str(unit): [[*self._row(row, scales, written, streams), {**row[-1], SCALES: gained}] for row in layer]
                for unit, layer in rows.items()
            }
            words = {str(unit): _words(self.conversion.units[unit], written) for unit in rows}
        replace_file(self.file, scales, {"rows": json.dumps(units), "words": json.dumps(words)})

    def write(self, streams: Streams) -> dict[int, list[Any]]:
        """Write the scales to the shards and the rows to the journal, a layer at a time; return the rows."""
        placed = self.conversion.layout.placed
        with safe_open(self.file, "pt") as file, self._written() as written:
            rows = {int(unit): layer for unit, layer in json.loads(file.metadata()["rows"]).items()}
            for unit, layer in sorted(rows.items()):
                for step in self._steps(layer):
                    at, scale = placed[step.scale.name], file.get_tensor(step.scale.name)
                    streams.writer.write(at.file, at.begin, scale.view(torch.int16).numpy().data)
                streams.writer.sync({task.target_file for task in self.conversion.units[unit]})
                streams.journal.append({unit: Done(layer, checksum(self.conversion.units[unit], written))})
        return rows

    def _row(
        self, row: Sequence[Any], scales: Mapping[str, torch.Tensor], written: Reader, streams: Streams
    ) -> list[Any]:
        """Return [step, *TileStats] of a weight on the new scales."""
        step = self.conversion.plan.quantized[row[0]]
        packed, (n, k) = self.conversion.layout.placed[step.packed.name], step.weight.shape
        words = np.frombuffer(written.read(packed.file, packed.begin, step.packed.nbytes), np.int32).reshape(n, -1)
        codes = codes_of(words, step.packing.num_bits)[:, :k]
        scheme = MethodChoice(Method.GPTQ, "").scheme(step.packing, signed=self.conversion.plan.recipe.signed)
        weight = source_weight(step, self.conversion.checkpoint, streams.reader)
        stats: TileStats = stats_of(scheme, weight, codes, scales[step.scale.name].float().numpy())
        return [row[0], *astuple(stats)]

    def _written(self) -> Reader:
        return Reader(self.conversion.staging.partial, (shard.file for shard in self.conversion.layout.shards))

    def _steps(self, layer: Sequence[Sequence[Any]]) -> Iterator[Quantize]:
        return (self.conversion.plan.quantized[row[0]] for row in layer)


def is_trained(rows: Mapping[int, Sequence[Sequence[Any]]]) -> bool:
    """Return whether any of the statistics belongs to trained scales."""
    return any(SCALES in row[-1] for layer in rows.values() for row in layer)


def _words(unit: Unit, written: Reader) -> str:
    """Return a digest of the codes of a unit."""
    digest = xxh3_64()
    for task in unit:
        if isinstance(task, QuantizeTask):
            digest.update(written.read(task.target_file, task.packed_begin, task.rows * task.packed_row))
    return str(digest.hexdigest())


def source_weight(step: Quantize, checkpoint: Checkpoint, reader: Reader) -> F32:
    """Read the weight of a step.

    Returns:
        The weight, float32 [n, k].
    """
    weight, segment = step.weight, step.weight.segment
    stored = checkpoint.tensors[segment.source]
    data = reader.read(stored.file, stored.begin + segment.begin, segment.end - segment.begin)
    found: F32 = torch.frombuffer(data, dtype=TORCH_DTYPES[weight.dtype]).float().numpy()
    return found.reshape(weight.shape)
