"""Runs the layers of a conversion one after the other, and continues where one was killed.

    hidden-0.f32, hidden-1.f32   what a layer is given and what it gives, in turns
    OUT.partial/states           where they are, with what else flows between layers
    OUT.partial/journal.jsonl    a record of each layer whose bytes and states are on disk

A layer reads one file and writes the other, so a killed run finds what the unfinished layer was given, and repeats
that layer alone; states that are not as they were written repeat all of them. All sums have one order, so it ends with
the same bytes, whatever the number of threads.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.calibration.layer import LayerPass, Weights
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Rounded, Rounding, Way, packed_words
from g4convert.calibration.states import States, check_room
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.journal import Done
from g4convert.conversion.result import Choice
from g4convert.conversion.resume import checksum
from g4convert.conversion.run import Conversion
from g4convert.conversion.staging import STATES
from g4convert.conversion.statistics import Coverage
from g4convert.conversion.stream import Progress, Streams
from g4convert.errors import Interrupted
from g4convert.planning.between import state_bytes
from g4convert.planning.layers import layer_steps
from g4convert.planning.sizes import default_workers
from g4convert.planning.steps import Quantize
from g4convert.planning.units import Unit
from g4convert.quantization import Method
from g4convert.tensors import DType

__all__ = ["LayerByLayer", "threads"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerByLayer:
    """The layers of a conversion, and what they are calibrated on.

    Args:
        conversion: with a method that goes layer by layer.
        tokens: sequences of one length.
    """

    conversion: Conversion
    tokens: Tokens

    @classmethod
    def of(cls, conversion: Conversion, file: Path) -> "LayerByLayer":
        """Read the tokens.

        Raises:
            InputError: see `Tokens.load`; or the disk is too small for what flows between layers and the output.
        """
        text = conversion.plan.architecture.text
        tokens = Tokens.load(file, text.vocab_size, conversion.checkpoint)
        states = state_bytes(text, tokens.samples * tokens.length, layered=True)
        check_room(conversion.staging.partial, states + sum(shard.size for shard in conversion.layout.shards))
        return cls(conversion, tokens)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Return everything that the bytes depend on, as JSON."""
        return {"tokens": self.tokens.hash, "samples": self.tokens.samples, "length": self.tokens.length}

    def run(self, pending: Mapping[int, Unit], streams: Streams, progress: Progress) -> dict[int, list[Any]]:
        """Do the layers that are left, in order.

        Args:
            pending: units that are whole layers, by number.
            streams: source files, output files and journal.
            progress: told of every weight that is rounded.

        Returns:
            Statistics of each unit: [step, *TileStats, how] for each of its weights.

        Raises:
            Interrupted: Ctrl-C; finished layers are in the journal.
            InputError: a weight is not finite, or the disk is full.
        """
        if not pending:
            return {}
        numbers = range(self.conversion.tiled, len(self.conversion.units))
        layers = dict(zip(numbers, self._layers, strict=True))
        if not self._continues(pending, layers):
            pending = {number: self.conversion.units[number] for number in numbers}
        results: dict[int, list[Any]] = {}
        try:
            with threads(self.conversion.job.workers or default_workers()) as pool:
                replay = Replay.open(self.conversion.job.source.path, self.tokens, self._states)
                fresh = min(pending) == self.conversion.tiled
                hidden = self._states.turns(replay.shape, fresh=fresh)
                if fresh:
                    replay.embed(hidden[0])
                for unit in sorted(pending):
                    number = layers[unit]
                    rows = self._layer(number, replay, hidden, streams, progress, pool)
                    streams.writer.sync({task.target_file for task in pending[unit]})
                    self._states.seal(number + 1)
                    streams.journal.append({unit: Done(rows, self._checksum(pending[unit]))})
                    results[unit] = rows
        except KeyboardInterrupt as error:
            raise Interrupted("stopped; finished layers are kept", hint="the same command continues") from error
        return results

    def report(self, results: Mapping[int, list[Any]]) -> Mapping[str, Any]:
        """Return what was used and found, as JSON."""
        quantized = self.conversion.plan.quantized
        rows = {
            quantized[row[0]].weight.module: row[-1]
            for unit in sorted(results)
            if unit >= self.conversion.tiled
            for row in results[unit]
        }
        ways = Counter(how["way"] for how in rows.values())
        return {
            **self.fingerprint,
            "kinds": dict(self.tokens.kinds),
            "judged_on": len(self.tokens.judges),
            "coverage": _coverage(rows),
            "ways": {way.value: ways[way.value] for way in Way},
            "output_error": {way.value: _mean(rows, way) for way in Way},
            "data_free_outside_layers": len(quantized) - len(rows),
            "without_tokens": [name for name, how in rows.items() if not how["tokens"]],
            "without_factor": [name for name, how in rows.items() if how["damp"] is None],
            "modules": rows,
        }

    def close(self) -> None:
        """Remove the states."""
        self._states.drop()

    def _checksum(self, unit: Unit) -> str:
        """Return the checksum of a unit as it lies on disk."""
        files = (shard.file for shard in self.conversion.layout.shards)
        with Reader(self.conversion.staging.partial, files) as written:
            return checksum(unit, written)

    @property
    def _states(self) -> States:
        return States(self.conversion.staging.partial / STATES)

    @property
    def _layers(self) -> Mapping[int, Mapping[str, int]]:
        return layer_steps(self.conversion.plan)

    def _continues(self, pending: Mapping[int, Unit], layers: Mapping[int, int]) -> bool:
        """True if the layers that are left are the last ones, and the states before them are as they were written."""
        first = min(pending)
        if first + len(pending) < len(self.conversion.units):
            return False
        return first == self.conversion.tiled or self._states.is_sound(layers[first])

    def _layer(  # noqa: PLR0913, PLR0917 -- everything a layer touches
        self,
        number: int,
        replay: Replay,
        hidden: list[F32],
        streams: Streams,
        progress: Progress,
        pool: Executor,
    ) -> list[Any]:
        steps = self._layers[number]
        quantized = self.conversion.plan.quantized
        rows: list[Any] = []

        def write(path: str, rounded: Rounded) -> None:
            step = steps[path]
            self._write(quantized[step], rounded, streams)
            rows.append([step, *astuple(rounded.stats), _how(rounded)])
            progress.advance(_source_bytes(quantized[step]), quantized[step].weight.name)

        weights = Weights(
            {path: quantized[step].weight.module for path, step in steps.items()},
            lambda path: self._read(quantized[steps[path]], streams),
            write,
        )
        choice, signed = Choice(Method.GPTQ, ""), self.conversion.plan.recipe.signed
        packed = (quantized[step] for step in steps.values())
        rounding = Rounding({one.weight.module: choice.scheme(one.packing, signed=signed) for one in packed}, pool)
        LayerPass(replay, number, weights, rounding, pool).run(hidden[number % 2], hidden[(number + 1) % 2])
        return rows

    def _read(self, step: Quantize, streams: Streams) -> F32:
        """A weight of the source, float32 [n, k]."""
        weight, segment = step.weight, step.weight.segment
        stored = self.conversion.checkpoint.tensors[segment.source]
        data = streams.reader.read(stored.file, stored.begin + segment.begin, segment.end - segment.begin)
        found: F32 = torch.frombuffer(data, dtype=_DTYPES[weight.dtype]).float().numpy().reshape(weight.shape)
        return found

    def _write(self, step: Quantize, rounded: Rounded, streams: Streams) -> None:
        packed, scale = (self.conversion.layout.placed[info.name] for info in (step.packed, step.scale))
        words = packed_words(rounded.codes, step.packing.num_bits)
        bits = (rounded.scale.view(np.uint32) >> 16).astype(np.uint16)
        streams.writer.write(packed.file, packed.begin, words.data)
        streams.writer.write(scale.file, scale.begin, bits.data)


_DTYPES = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}


def _source_bytes(step: Quantize) -> int:
    return step.weight.segment.end - step.weight.segment.begin


def _how(rounded: Rounded) -> dict[str, Any]:
    """Describe as JSON the way a weight was rounded."""
    errors = {way.value: float(f"{error:.6g}") for way, error in rounded.errors.items()}
    return {"way": rounded.way.value, "tokens": rounded.tokens, "damp": rounded.damp, "errors": errors}


def _coverage(rows: Mapping[str, Any]) -> dict[str, int] | None:
    """Tokens that experts met; None of a model without."""
    met = [how["tokens"] for name, how in rows.items() if ".experts." in name and name.endswith("gate_proj")]
    return asdict(Coverage.of(np.array(met))) if met else None


def _mean(rows: Mapping[str, Any], way: Way) -> float | None:
    """The mean relative output error of a way, over the weights that were rounded so for the choice."""
    errors = [how["errors"][way.value] for how in rows.values() if way.value in how["errors"]]
    return float(np.mean(errors)) if errors else None


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """Threads in each of which torch runs on one: what a product gives does not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers, "layer", initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)
