"""Runs an unquantized model once, layer by layer, and adds up the squares of its Linears' inputs.

    ids --embedding--> states --layer 0--> states --layer 1--> ...        states and sums in files: see `kept`

Sums are float64, over the tokens of a sequence and then over the sequences, in order, so they do not depend on the
number of threads. Judging sequences are left out. A killed run repeats one layer. Ranks of one host share a layer's
sequences and experts.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from g4convert.array_types import F32, F64, I64
from g4convert.calibration.counted import Counted
from g4convert.calibration.kept import UnfinishedRecording
from g4convert.calibration.replay import Replay
from g4convert.calibration.squares import Hooks, Sums, add
from g4convert.calibration.team import Team, threads
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.identity import Model
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.conversion.statistics import InputStatistics, Statistics
from g4convert.devices import CPU, device_of_rank
from g4convert.errors import G4Error, Interrupted
from g4convert.planning.sizes import default_workers
from g4convert.progress import Progress

_OUTSIDE: Final = "per_layer_model_projection"
"""The decoder's Linear outside the layers that recipes can pack."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording that ranks share.

    Args:
        source: the checkpoint, not quantized.
        tokens: sequences to run.
        scratch: directory of the values that flow between layers. An unfinished run in it continues if it is of the
            same model and tokens, and starts again if not.
        device: device that runs the layers; ranks take GPUs in turns.
    """

    source: Path
    tokens: Tokens
    scratch: Path
    device: torch.device

    def sums(self, ranks: Ranks, workers: int, progress: Progress) -> tuple[Model, Sums]:
        """Run all layers that are left; return the model and the sums of all layers, in rank 0.

        Raises:
            InputError: the model changed while it was read; what was read of it is not kept.
        """
        taken, source = self.tokens.without(self.tokens.judges), Checkpoint.open(self.source)
        with (
            Reader(source.path, source.weight_files) as reader,
            threads(workers or max(1, default_workers() // ranks.world)) as pool,
        ):
            model = Model.of(source)
            kept = UnfinishedRecording(self.scratch, self.facts(model), ranks)
            device = device_of_rank(self.device, ranks.rank, ranks.world)
            replay = Replay.open(self.source, taken, kept.states, device)
            check = partial(check_unchanged, source, reader)
            return model, _run(replay, kept, Team(pool, ranks), progress, check)

    def facts(self, model: Model) -> dict[str, Any]:
        """Return everything that the sums depend on, as JSON."""
        return {"tokens": self.tokens.hash, "device": self.device.type, **model.to_dict()}


def record(  # noqa: PLR0913 -- a model, what it runs, and how
    source: Path,
    tokens: Tokens,
    scratch: Path,
    *,
    workers: int = 0,
    device: torch.device = CPU,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Statistics:
    """Measure the mean squares of the inputs of a model's Linears.

    Args:
        source: see `Recording`.
        tokens: the same.
        scratch: the same; `kept.drop` removes it once the statistics are saved.
        workers: number of threads; 0 takes one for each core.
        device: device that runs the layers.
        progress: told of each layer.
        ranks: rank 0 of ranks of which the others `assist`.

    Returns:
        Statistics over all sequences that do not judge.

    Raises:
        G4Error: see `forward.load.load`, and `Recording.sums`.
        EnvironmentFault: the disk is full.
        Interrupted: Ctrl-C; finished layers are kept.
    """
    recording = Recording(source, tokens, scratch, device)
    ranks.from_lead(recording)
    try:
        model, sums = recording.sums(ranks, workers, progress or Progress())
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; what is finished is kept", hint="the same command continues") from error
    inputs = {name: _mean(*one) for name, one in sorted(sums.items())}
    return Statistics(inputs, model, "g4convert", tokens.hash, tokens.samples, tokens.length)


def assist(ranks: Ranks, workers: int) -> Any:  # noqa: ANN401 -- whatever rank 0 sends
    """Take part in recordings of rank 0 until it sends something else, and return that.

    Raises:
        G4Error: rank 0 sent an error.
    """
    sent: Any
    while isinstance(sent := ranks.from_lead(None), Recording):
        with suppress(G4Error):  # of all ranks; rank 0 sends it
            sent.sums(ranks, workers, Progress())
    return sent


def _run(replay: Replay, kept: UnfinishedRecording, team: Team, progress: Progress, check: Callable[[], None]) -> Sums:
    """Run the remaining layers in order and return the sums of all stages, in rank 0.

    Args:
        replay: the model.
        kept: the finished stages.
        team: ranks and threads that share a layer.
        progress: told of each layer.
        check: raises if the model changed, before a stage is kept.
    """
    ranks = team.ranks
    stages = [*ranks.together(lambda: kept.resumed() if ranks.leads else [])[0]]
    hidden = kept.states.turns(replay.shape, fresh=not stages)

    def keep(sums: Sums) -> None:
        stages.append(sums)
        ranks.together(check)
        ranks.together(lambda: kept.keep(len(stages) - 1, sums) if ranks.leads else None)

    if not stages:
        keep(_embed(replay, hidden[0], ranks))
    layers = replay.config.num_hidden_layers
    progress.step("layers", layers, "layers")
    progress.tick(len(stages) - 1)
    for number in range(len(stages) - 1, layers):
        keep(Counted(replay, number, team).run(hidden[number % 2], hidden[(number + 1) % 2]))
        progress.tick(1)
    return {name: one for sums in stages for name, one in sums.items()}


def _embed(replay: Replay, out: F32, ranks: Ranks) -> Sums:
    """Fill `out` with the first layer's inputs; return the sums of the Linear before the layers."""
    found = dict(replay.model.get_decoder().named_modules()).get(_OUTSIDE)
    hooks = Hooks({} if found is None else {_OUTSIDE: found})
    own: dict[int, Sums] = {}

    def take(s: int) -> None:
        own[s] = hooks.end(out.shape[1])
        hooks.begin()

    with hooks.placed():
        hooks.begin()
        replay.embed(out, take)
    total: Sums = {}
    every = {s: sums for part in ranks.gather(own) for s, sums in part.items()}
    for s in sorted(every):
        add(total, every[s])
    return total


def _mean(squares: F64, tokens: I64) -> InputStatistics:
    counts = np.maximum(tokens, 1)
    mean = squares / (counts[:, None] if squares.ndim > 1 else counts)
    return InputStatistics(mean.astype(np.float32), tokens)
