"""Runs an unquantized model once, layer by layer, and adds up the squares of its Linears' inputs.

    ids --embedding--> states --layer 0--> states --layer 1--> ...        states and sums in files: see `kept`

Sums are float64, over the tokens of a sequence and then over the sequences, in order, so they do not depend on the
number of threads. Judging sequences are left out. A killed run repeats one layer.
"""

from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np
import torch

from g4convert.array_types import F32, F64, I64
from g4convert.calibration.counted import Counted
from g4convert.calibration.kept import Kept
from g4convert.calibration.replay import Replay
from g4convert.calibration.squares import Hooks, Sums
from g4convert.calibration.team import threads
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.identity import Model
from g4convert.conversion.statistics import Inputs, Statistics
from g4convert.devices import CPU
from g4convert.errors import Interrupted
from g4convert.planning.sizes import default_workers
from g4convert.progress import Quiet

_OUTSIDE: Final = "per_layer_model_projection"
"""The decoder's Linear outside the layers that recipes can pack."""


def record(  # noqa: PLR0913 -- a model, what it runs, and how
    source: Path,
    tokens: Tokens,
    scratch: Path,
    *,
    workers: int = 0,
    device: torch.device = CPU,
    progress: Quiet | None = None,
) -> Statistics:
    """Measure the mean squares of the inputs of a model's Linears.

    Args:
        source: the checkpoint, not quantized.
        tokens: sequences to run.
        scratch: directory of the values that flow between layers, removed at the end. An unfinished run in it continues
            if it is of the same model and tokens, and starts again if not.
        workers: number of threads; 0 takes one for each core.
        device: device that runs the layers.
        progress: told of each layer.

    Returns:
        Statistics over all sequences that do not judge.

    Raises:
        G4Error: see `forward.load.load`.
        InputError: the disk is full.
        Interrupted: Ctrl-C; finished layers are kept.
    """
    model = Model.of(Checkpoint.open(source))
    taken = Tokens(np.delete(tokens.ids, sorted(tokens.judges), axis=0))
    kept = Kept(scratch, {"tokens": tokens.hash, "device": device.type, **model.to_dict()})
    try:
        with threads(workers or default_workers()) as pool:
            sums = _run(Replay.open(source, taken, kept.states, device), kept, pool, progress or Quiet())
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; what is finished is kept", hint="the same command continues") from error
    kept.states.drop()
    inputs = {name: _mean(*one) for name, one in sorted(sums.items())}
    return Statistics(inputs, model, "g4convert", tokens.hash, tokens.samples, tokens.length)


def _run(replay: Replay, kept: Kept, pool: Executor, progress: Quiet) -> Sums:
    """Run the remaining layers in order and return the sums of all stages."""
    stages = kept.resumed()
    hidden = kept.states.turns(replay.shape, fresh=not stages)
    if not stages:
        stages = [_embed(replay, hidden[0])]
        kept.keep(0, stages[0])
    layers = replay.config.num_hidden_layers
    progress.step("layers", layers, "layers")
    progress.tick(len(stages) - 1)
    for number in range(len(stages) - 1, layers):
        stages.append(Counted(replay, number, pool).run(hidden[number % 2], hidden[(number + 1) % 2]))
        kept.keep(number + 1, stages[-1])
        progress.tick(1)
    return {name: one for sums in stages for name, one in sums.items()}


def _embed(replay: Replay, out: F32) -> Sums:
    """Fill `out` with the first layer's inputs; return the sums of the Linear before the layers."""
    found = dict(replay.model.get_decoder().named_modules()).get(_OUTSIDE)
    hooks = Hooks({} if found is None else {_OUTSIDE: found})
    with hooks.placed():
        hooks.begin()
        replay.embed(out)
    return hooks.end(int(out.shape[0] * out.shape[1]))


def _mean(squares: F64, tokens: I64) -> Inputs:
    counts = np.maximum(tokens, 1)
    mean = squares / (counts[:, None] if squares.ndim > 1 else counts)
    return Inputs(mean.astype(np.float32), tokens)
