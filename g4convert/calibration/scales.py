"""Method `best`: trains the scales of a conversion whose layers are all done.

    original  -->  targets                  next-token probabilities, a sequence at a time
    OUT.partial  -->  student  -->  scales  codes stay; the state is saved every 16 sequences
    held-out sequences                      choose the share, from 1 to 0, of the trained change with the least KL
    `trained`                               saves everything to write, then writes it

Until `trained` writes, OUT.partial holds the output of `gptq`, so a killed run finds it whole.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch

from g4convert.calibration.distill import Distillation, Schedule
from g4convert.calibration.states import States
from g4convert.calibration.student import Student
from g4convert.calibration.targets import SoftTargets
from g4convert.calibration.team import in_order
from g4convert.calibration.tokens import Tokens, held_out_samples
from g4convert.calibration.trained import Trained, is_trained
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.job import Conversion
from g4convert.conversion.stream import Streams
from g4convert.devices import free_memory, is_roomy
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.forward.load import load
from g4convert.forward.logits import Head
from g4convert.forward.models import Model
from g4convert.forward.streaming import run_together, stream_of
from g4convert.gemma4 import Role
from g4convert.planning.training import TrainingMemory
from g4convert.progress import Progress
from g4convert.quantities import size

SHARES: Final = 1.0, 0.5, 0.25, 0.0
"""Shares of the trained change that are tried; 0 keeps the scales of `gptq`."""
_STATE: Final = "training.safetensors"


@dataclass(frozen=True, slots=True)
class ScaleTraining:
    """The training of a conversion's scales.

    Args:
        conversion: conversion with all layers in OUT.partial.
        tokens: sequences on which the layers were calibrated, those with pictures left out: a decoder alone is trained.
        states: directory of targets and training state.
        schedule: course of the training.
    """

    conversion: Conversion
    tokens: Tokens
    states: States
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Everything that the scales depend on besides codes and tokens, as JSON."""
        return {**asdict(self.schedule), "shares": [*SHARES]}

    def check(self, workers: int) -> None:
        """Raise if the scales cannot be trained, before the hours of quantizing the layers.

        Raises:
            UsageError: the head is packed, or fewer than two sequences are without pictures.
            EnvironmentFault: too little memory is free.
        """
        heads = [step.weight.module for step in self.conversion.plan.quantized if self._is_head(step.weight.role)]
        if heads:
            raise UsageError(
                f"method best: {heads[0]} is packed, and scales are trained against a head that is kept",
                hint=f"keep {heads[0]}, or --method gptq",
            )
        if self.tokens.samples < 2:
            raise UsageError(
                f"method best: it trains on samples without pictures, and there are {self.tokens.samples}",
                hint="--method gptq, or a calibration file with more text",
            )
        need = TrainingMemory.of(self.conversion.plan, self.tokens.length, min(self.schedule.batch, workers))
        if not is_roomy(need.total):
            parts = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in need.parts.items())
            raise EnvironmentFault(
                f"method best: training takes {size(need.total)} of memory ({parts}), and "
                f"{size(free_memory())} are free, of which a part must stay so",
                hint="--method gptq holds one layer at a time; shorter samples and fewer workers take less",
            )

    def is_ready(self) -> bool:
        """Return whether trained scales only wait to be written; remove those trained for codes not in OUT.partial."""
        if not self._trained.exists():
            return False
        if self._trained.is_of_codes_there():
            return True
        self._trained.drop()
        (self.states.directory / _STATE).unlink(missing_ok=True)
        return False

    def run(
        self, rows: Mapping[int, list[Any]], streams: Streams, progress: Progress, pool: Executor
    ) -> dict[int, list[Any]]:
        """Train the scales and write them; resume an earlier run.

        Args:
            rows: statistics of all units that are whole layers; unused if the scales are trained already.
            streams: source and output files, and journal.
            progress: told of every sequence.
            pool: threads in which torch is single-threaded.

        Returns:
            Statistics of the layers, with the gain of the training for each weight.

        Raises:
            EnvironmentFault: the disk is full.
            InputError: the source changed: none of its answers are kept.
        """
        if not self._trained.exists():
            if is_trained(rows):
                return {}  # killed behind the last step
            self._make_targets(streams, progress, pool)
            self._train(rows, streams, progress, pool)
        return self._trained.write(streams)

    def _make_targets(self, streams: Streams, progress: Progress, pool: Executor) -> None:
        left = SoftTargets.left(self.states, self.tokens.samples)
        if not left:
            return
        progress.step("targets", len(left), "samples")
        model = load(self.conversion.job.source.path, memory="auto", decoder_only=True)
        targets = self._targets(model)
        for s, states in zip(left, _states(model, self.tokens, left, pool), strict=True):
            check_unchanged(self.conversion.checkpoint, streams.reader)  # `load` reads by name
            targets.make(s, states)
            progress.tick(1)

    def _train(self, rows: Mapping[int, list[Any]], streams: Streams, progress: Progress, pool: Executor) -> None:
        quantized = self.conversion.plan.quantized
        names = {quantized[row[0]].scale.name for layer in rows.values() for row in layer}
        student = Student.open(self.conversion.staging.partial, names)
        targets, state = self._targets(student.model), self.states.directory / _STATE
        training = Distillation(student, targets, self.tokens, pool, state, self.schedule)
        progress.step("scales", training.sequences, "samples")
        training.run(progress.tick)
        judging = held_out_samples(self.tokens.samples)
        progress.step("shares", len(SHARES) * len(judging), "samples")
        kl: dict[float, float] = {}
        for share in SHARES:
            kl[share] = training.judged(share)
            progress.tick(len(judging))
        share = best_share(kl)
        student.go(share)
        gained = {"share": share, "kl": {f"{one:g}": _short(kl[one]) for one in SHARES}, "held_out": len(judging)}
        self._trained.keep(rows, student.stored(), gained, streams)

    def _targets(self, model: Model) -> SoftTargets:
        return SoftTargets.open(self.states, Head.of(model), self.tokens.samples, self.tokens.length)

    def _is_head(self, role: Role) -> bool:
        tied = self.conversion.plan.architecture.tied_embeddings
        return role is Role.LM_HEAD or (tied and role is Role.EMBEDDING)

    @property
    def _trained(self) -> Trained:
        return Trained(self.conversion, self.states.directory / "scales.safetensors")


def best_share(kl: Mapping[float, float]) -> float:
    """Return the share with the least KL, the smallest of equals; a share whose KL is not finite is never taken."""
    return min(sorted(kl), key=lambda share: kl[share] if np.isfinite(kl[share]) or not share else np.inf)


def _states(model: Model, tokens: Tokens, left: list[int], pool: Executor) -> Iterator[torch.Tensor]:
    """Return an iterator of the sequences' final states, float32 [t, h]; a streamed model runs all in one pass."""
    decoder = model.get_decoder()

    def states(s: int) -> torch.Tensor:
        with torch.no_grad():  # a setting of each thread
            given = torch.from_numpy(tokens.ids[s].astype(np.int64))[None]
            found: torch.Tensor = decoder(input_ids=given, use_cache=False).last_hidden_state
            return found[0]

    if stream_of(model) is not None:
        return iter(run_together(model, [lambda s=s: states(s) for s in left]))  # type: ignore[misc]
    return (one for _, one in in_order(pool, states, left))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
