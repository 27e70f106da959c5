"""Runs the layers of a conversion one after the other, and resumes a killed run.

    hidden-0.f32, hidden-1.f32   inputs and outputs of a layer, in turns
    OUT.partial/states           their directory, with the other values that flow between layers
    OUT.partial/journal.jsonl    a record of each layer whose bytes and states are on disk

A layer reads one file and writes the other, so a resumed run finds the inputs of the unfinished layer and repeats only
that layer. If the states do not match their checksums, all layers are repeated. All sums have a fixed order, so a
resumed run ends with the same bytes, with any number of threads and ranks. Ranks share a layer (`team`); rank 0 keeps
the journal, and trains alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.calibration.findings import findings, how, is_how
from g4convert.calibration.layer import ORIGINAL, LayerPass
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Rounded, Rounding, pack_words
from g4convert.calibration.scales import ScaleTraining
from g4convert.calibration.states import States, check_room
from g4convert.calibration.team import Team, threads
from g4convert.calibration.tokens import Tokens
from g4convert.calibration.trained import is_trained, source_weight
from g4convert.calibration.work import LayerWeights, LayerWork
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.job import Conversion
from g4convert.conversion.journal import Done
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.conversion.result import MethodChoice
from g4convert.conversion.resume import checksum
from g4convert.conversion.staging import STATES
from g4convert.conversion.stream import Streams
from g4convert.devices import device_of_rank, torch_device
from g4convert.errors import EnvironmentFault, Interrupted, UsageError
from g4convert.planning.between import state_bytes, target_bytes
from g4convert.planning.layers import layer_steps
from g4convert.planning.plan import Quantize
from g4convert.planning.recipe import RecipeMethod
from g4convert.planning.sizes import default_workers
from g4convert.planning.units import Unit
from g4convert.progress import Progress
from g4convert.quantization import Method, Scheme


@dataclass(frozen=True, slots=True)
class LayerByLayer:
    """Calibrated conversion of the decoder layers, one after the other.

    Args:
        conversion: conversion whose method works layer by layer.
        tokens: sequences of one length.
        training: the training of scales; None if the method has none, or no layer to train.
        ranks: ranks of one host that share the layers.
    """

    conversion: Conversion
    tokens: Tokens
    training: ScaleTraining | None
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, conversion: Conversion, file: Path, ranks: Ranks = ALONE) -> "LayerByLayer":
        """Read the tokens.

        Raises:
            InputError: see `Tokens.load`.
            UsageError, EnvironmentFault: see `ScaleTraining.check`; or the disk is too small for the output and the
                states between layers; or ranks are on several hosts.
        """
        hosts = ranks.hosts()
        if len(hosts) > 1:
            raise UsageError(
                f"method {conversion.plan.recipe.method}: ranks share the states of a layer in memory of one host, and "
                f"are on {len(hosts)}: {', '.join(hosts)}",
                hint="start all ranks on one host; ranks of --method imatrix may be on several",
            )
        text = conversion.plan.architecture.text
        tokens = Tokens.load(file, text.vocab_size, conversion.checkpoint)
        layers, count = cls(conversion, tokens, _training(conversion, tokens), ranks), tokens.samples * tokens.length
        states = state_bytes(text, count, layered=True)
        if layers.training is not None:
            states += target_bytes(text, count)
            layers.training.check(layers._workers)
        check_room(conversion.staging.partial, states + sum(shard.size for shard in conversion.layout.shards))
        return layers

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Everything that the output's bytes depend on, as JSON."""
        of_tokens = {"tokens": self.tokens.hash, "samples": self.tokens.samples, "length": self.tokens.length}
        return of_tokens if self.training is None else {**of_tokens, "training": self.training.fingerprint}

    def run(
        self, pending: Mapping[int, Unit], done: Mapping[int, list[Any]], streams: Streams, progress: Progress
    ) -> dict[int, list[Any]]:
        """Quantize the remaining layers in order; train the scales if the method does.

        Args:
            pending: unfinished units that are whole layers, by number.
            done: statistics of the units that an earlier run finished.
            streams: source files, output files and journal.
            progress: told of every weight that is rounded.

        Returns:
            Statistics of each unit, in rank 0: [step, *TileStats, how] for each of its weights.

        Raises:
            Interrupted: Ctrl-C; finished layers are in the journal.
            InputError: a weight is not finite, or the source changed: the layer is not in the journal.
            EnvironmentFault: the disk is full, or the device is out of memory.
        """
        before = _layers_of(done, self.conversion.tiled)
        try:
            with threads(self._workers) as pool:
                (left, *_) = self.ranks.together(lambda: self._left(pending, before) if self.ranks.leads else ())
                results = self._run_layers(left, streams, progress, Team(pool, self.ranks))
                if self.training is not None and self.ranks.leads:
                    results = self.training.run({**before, **results}, streams, progress, pool)
        except torch.OutOfMemoryError as error:
            raise EnvironmentFault(
                f"--device {self.conversion.job.device}: out of memory; finished layers are kept",
                hint="once more is free, the same command continues; `calibrate --length N` makes shorter samples",
            ) from error
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; what is finished is kept", hint="the same command continues") from error
        return results

    def _left(self, pending: Mapping[int, Unit], before: Mapping[int, list[Any]]) -> tuple[int, ...]:
        """Return the units that are to be done: all of them where the first of these has no sound inputs."""
        if not pending or (self.training is not None and self.training.is_ready()):
            return ()
        if self.training is not None and is_trained(before):
            return tuple(self._all_layers)
        return tuple(sorted(pending) if self._continues(pending) else self._all_layers)

    def _run_layers(
        self, numbers: Sequence[int], streams: Streams, progress: Progress, team: Team
    ) -> dict[int, list[Any]]:
        if not numbers:
            return {}
        layers, pending = self._numbers, {unit: self._all_layers[unit] for unit in numbers}
        results: dict[int, list[Any]] = {}
        progress.step("layers", sum(map(len, pending.values())), "weights")
        replay = Replay.open(self.conversion.job.source.path, self.tokens, self._states, self._device)
        fresh = min(pending) == self.conversion.tiled
        hidden = self._states.turns(replay.shape, fresh=fresh)
        original = self._states.turns(replay.shape, fresh=fresh, of=ORIGINAL) if self._is_aimed else None
        if fresh:
            replay.embed(hidden[0])
            if original is not None and team.ranks.leads:
                original[0][:] = hidden[0]
            team.ranks.wait()
        for unit in numbers:
            number = layers[unit]
            rows = self._layer(number, replay, (hidden, original), streams, progress, team)
            streams.writer.sync({task.target_file for task in pending[unit]})
            team.ranks.together(partial(check_unchanged, self.conversion.checkpoint, streams.reader))
            if team.ranks.leads:
                self._states.seal(number + 1)
                streams.journal.append({unit: Done(rows, self._checksum(pending[unit]))})
                results[unit] = rows
        return results

    def is_of(self, rows: list[Any]) -> bool:
        """Return whether statistics of a layer have the form that `report` reads."""
        return all(is_how(row[-1]) for row in rows)

    def report(self, results: Mapping[int, list[Any]]) -> Mapping[str, Any]:
        """Return the tokens used and the statistics found, as JSON."""
        layers = {unit: rows for unit, rows in results.items() if unit >= self.conversion.tiled}
        used = {**self.fingerprint, "kinds": dict(self.tokens.kinds), "judged_on": len(self.tokens.judges)}
        if (shown := self.tokens.pictures) is not None:
            used |= {"pictures": len(shown), "samples_with_pictures": len(shown.in_rows)}
        return {**used, **findings(layers, self.conversion.plan.quantized)}

    def close(self) -> None:
        """Remove the states."""
        self._states.drop()

    def _checksum(self, unit: Unit) -> str:
        """Return the checksum of a unit's bytes on disk."""
        files = (shard.file for shard in self.conversion.layout.shards)
        with Reader(self.conversion.staging.partial, files) as written:
            return checksum(unit, written)

    @property
    def _all_layers(self) -> Mapping[int, Unit]:
        """Units that are whole layers, by number."""
        return dict(enumerate(self.conversion.units[self.conversion.tiled :], self.conversion.tiled))

    @property
    def _workers(self) -> int:
        return self.conversion.job.workers or max(1, default_workers() // self.ranks.world)

    @property
    def _device(self) -> torch.device:
        """Device of the layers; ranks take GPUs in turns."""
        return device_of_rank(torch_device(self.conversion.job.device), self.ranks.rank, self.ranks.world)

    @property
    def _is_aimed(self) -> bool:
        """Return whether the unquantized layers run, too; not with experts, which the original gives other tokens."""
        return self.conversion.plan.architecture.text.experts is None

    @property
    def _states(self) -> States:
        return States(_directory(self.conversion), self.ranks)

    @property
    def _layers(self) -> Mapping[int, Mapping[str, int]]:
        return layer_steps(self.conversion.plan)

    @property
    def _numbers(self) -> Mapping[int, int]:
        """Number of the layer of each unit."""
        return dict(zip(self._all_layers, self._layers, strict=True))

    def _continues(self, pending: Mapping[int, Unit]) -> bool:
        """Return whether the pending layers are the last ones and the states before them match their checksums."""
        first = min(pending)
        if first + len(pending) < len(self.conversion.units):
            return False
        return first == self.conversion.tiled or self._states.is_sound(self._numbers[first])

    def _layer(  # noqa: PLR0913, PLR0917 -- everything a layer touches
        self,
        number: int,
        replay: Replay,
        states: tuple[list[F32], list[F32] | None],
        streams: Streams,
        progress: Progress,
        team: Team,
    ) -> list[Any]:
        steps = self._layers[number]
        quantized = self.conversion.plan.quantized
        rows: list[Any] = []

        def write(path: str, rounded: Rounded) -> list[Any]:
            step = steps[path]
            self._write(quantized[step], rounded, streams)
            return [step, *astuple(rounded.stats), how(rounded)]

        def note(row: list[Any]) -> None:
            rows.append(row)
            progress.tick(1, quantized[row[0]].weight.name)

        weights = LayerWeights(
            {path: quantized[step].weight.module for path, step in steps.items()},
            lambda path: source_weight(quantized[steps[path]], self.conversion.checkpoint, streams.reader),
            write,
            note,
        )
        choice, signed = MethodChoice(Method.GPTQ, ""), self.conversion.plan.recipe.signed
        packed = (quantized[step] for step in steps.values())
        schemes: dict[str, Scheme] = {step.weight.module: choice.scheme(step.packing, signed=signed) for step in packed}
        rounding = Rounding(schemes, team, replay.device)
        given, out = number % 2, (number + 1) % 2
        hidden, plain = states
        original = None if plain is None else (plain[given], plain[out])
        LayerPass(LayerWork(replay, number, weights, rounding, team)).run(hidden[given], hidden[out], original)
        return rows

    def _write(self, step: Quantize, rounded: Rounded, streams: Streams) -> None:
        packed, scale = (self.conversion.layout.placed[info.name] for info in (step.packed, step.scale))
        words = pack_words(rounded.codes, step.packing.num_bits)
        bits = (rounded.scale.view(np.uint32) >> 16).astype(np.uint16)
        streams.writer.write(packed.file, packed.begin, words.data)
        streams.writer.write(scale.file, scale.begin, bits.data)


def _training(conversion: Conversion, tokens: Tokens) -> ScaleTraining | None:
    """Return the training of scales, on sequences without pictures; see `LayerByLayer`."""
    if conversion.plan.recipe.method is not RecipeMethod.BEST or not layer_steps(conversion.plan):
        return None
    alone = States(_directory(conversion))  # rank 0 trains; the others do not make its arrays
    return ScaleTraining(conversion, tokens.without(tokens.pictured), alone)


def _directory(conversion: Conversion) -> Path:
    """Return the directory of the states between layers."""
    return conversion.staging.partial / STATES


def _layers_of(rows: Mapping[int, list[Any]], tiled: int) -> dict[int, list[Any]]:
    """Return the statistics of the units that are whole layers."""
    return {unit: layer for unit, layer in rows.items() if unit >= tiled}
