"""Trains the scales of a quantized decoder until it answers like the original: Adam on the KL of next tokens.

    epoch   every sequence that is not held out, once, in an order drawn for the epoch; a step is one batch
    step    gradients of the batch's sequences, summed in order; Adam moves all logs against them
    state   the logs and Adam's moments, saved every 16 sequences: a killed run repeats at most 16

Sequences of a batch run in threads, one each, in which torch is single-threaded, so the result does not depend on the
number of threads. Only the order is random, and the number of the epoch is its seed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save

from g4convert.calibration.student import Student
from g4convert.calibration.targets import SoftTargets
from g4convert.calibration.team import in_order
from g4convert.calibration.tokens import Tokens, held_out_samples
from g4convert.planning.training import BATCH, EPOCHS
from g4convert.whole_files import write_whole

_DECAY: Final = 0.9, 0.99
_TINY: Final = 1e-12
_WARM: Final = 4
"""Steps of warm-up, over which the rate rises."""
_KEPT: Final = 16
"""Sequences after which the state is saved."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Course of a training.

    Args:
        epochs: passes over the sequences.
        batch: sequences of a step.
        rate: peak learning rate of the scales' logarithms.
    """

    epochs: int = EPOCHS
    batch: int = BATCH
    rate: float = 1.2e-3

    @property
    def kept(self) -> int:
        """Steps after which the state is saved."""
        return max(1, _KEPT // self.batch)

    def batches(self, samples: int) -> list[list[int]]:
        """Return the sequences of each step; an epoch has all of `samples` that are not held out, in its own order."""
        training = [s for s in range(samples) if s not in held_out_samples(samples)]
        orders = [self.order(epoch, training) for epoch in range(self.epochs)]
        return [order[at : at + self.batch] for order in orders for at in range(0, len(order), self.batch)]

    def rate_at(self, step: int, steps: int) -> float:
        """Return the rate of a step: linear warm-up, times half a cosine down to 0."""
        return self.rate * min(1.0, (step + 1) / _WARM) * (1 + math.cos(math.pi * step / steps)) / 2

    @staticmethod
    def order(epoch: int, sequences: Sequence[int]) -> list[int]:
        """Return the sequences in the order of an epoch."""
        drawn = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(epoch))
        return [sequences[place] for place in drawn.tolist()]


@dataclass(frozen=True, slots=True)
class Distillation:
    """The training of a student.

    Args:
        student: model with the scales to train.
        targets: next-token probabilities of the original.
        tokens: sequences, some of which are held out.
        pool: threads that each take a sequence.
        file: file of the training state.
        schedule: course of the training.
    """

    student: Student
    targets: SoftTargets
    tokens: Tokens
    pool: Executor
    file: Path
    schedule: Schedule

    def run(self, tick: Callable[[int], None]) -> None:
        """Train to the end; resume from the saved state.

        Args:
            tick: told of the number of finished sequences.
        """
        adam, course = _Adam.of(self.student.logs), self._course
        begun = adam.load(self.file) if self.file.exists() else 0
        tick(sum(map(len, course[:begun])))
        for number in range(begun, len(course)):
            adam.step(self._slopes(course[number]), self.schedule.rate_at(number, len(course)))
            tick(len(course[number]))
            if (number + 1) % self.schedule.kept == 0 or number + 1 == len(course):
                adam.save(self.file)

    def judged(self, share: float) -> float:
        """Return the mean KL of the held-out sequences, in nats, with a share of the trained change."""

        def kl(s: int) -> float:
            with torch.no_grad():
                found = self.targets.compare(s, self.student.states(self.tokens.ids[s])).kl
                return float(found.mean(dtype=torch.float64))

        self.student.go(share)
        found = [one for _, one in in_order(self.pool, kl, sorted(held_out_samples(self.tokens.samples)))]
        return sum(found) / len(found)

    @property
    def sequences(self) -> int:
        """Number of sequences to run, over all epochs."""
        return sum(map(len, self._course))

    @property
    def _course(self) -> list[list[int]]:
        """Batches of all epochs, in order."""
        return self.schedule.batches(self.tokens.samples)

    def _slopes(self, batch: Sequence[int]) -> list[torch.Tensor]:
        """Return the gradients of the batch's mean KL by each log."""
        logs = self.student.logs

        def slopes(s: int) -> tuple[torch.Tensor | None, ...]:
            with torch.enable_grad():  # a setting of each thread
                states = self.student.states(self.tokens.ids[s])
                slope = self.targets.compare(s, states).slope / (len(states) * len(batch))
                return torch.autograd.grad(states, logs, slope, allow_unused=True)  # an expert without tokens

        total = [torch.zeros_like(log) for log in logs]
        for _, found in in_order(self.pool, slopes, batch):
            for into, one in zip(total, found, strict=True):
                if one is not None:
                    into.add_(one)
        return total


@dataclass(frozen=True, slots=True)
class _Adam:
    """Logs, and Adam's moments of their gradients; `count` holds one number, the finished steps."""

    logs: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    count: list[int]

    @classmethod
    def of(cls, logs: list[torch.Tensor]) -> "_Adam":
        """Start with moments of 0."""
        return cls(logs, [torch.zeros_like(log) for log in logs], [torch.zeros_like(log) for log in logs], [0])

    def step(self, slopes: Sequence[torch.Tensor], rate: float) -> None:
        """Move the logs by one step of Adam."""
        self.count[0] += 1
        kept, squared = (1 - decay ** self.count[0] for decay in _DECAY)
        with torch.no_grad():
            for log, mean, square, slope in zip(self.logs, self.means, self.squares, slopes, strict=True):
                mean.lerp_(slope, 1 - _DECAY[0])
                square.lerp_(slope.square(), 1 - _DECAY[1])
                log.addcdiv_(mean, (square / squared).sqrt_().add_(_TINY), value=-rate / kept)

    def save(self, path: Path) -> None:
        """Save logs, moments and the number of steps."""
        replace_file(path, {**dict(self._named()), "steps": torch.tensor(self.count)}, {})

    def load(self, path: Path) -> int:
        """Load a saved state and return the number of finished steps."""
        stored = load_file(path)
        self.count[0] = int(stored.pop("steps").item())
        with torch.no_grad():
            for name, tensor in self._named():
                tensor.copy_(stored[name])
        return self.count[0]

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for kind, tensors in (("log", self.logs), ("mean", self.means), ("square", self.squares)):
            yield from ((f"{kind}.{number}", tensor.detach()) for number, tensor in enumerate(tensors))


def replace_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically: a kill leaves the old file or the new file."""
    write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata)))
