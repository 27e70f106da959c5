"""Estimate of the time and memory of level `logits`, told before it starts.

    layers       2 x active weights x tokens, for each pass over the probes
    heads        2 x vocabulary x hidden size x scored predictions, for each model
    examination  module by module, and the search for the culprit: about as much as one more pass and head

The operations are divided by this machine's current operations per second, measured on a product of the same kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Self

import torch

from g4convert.forward.logits import PIECE
from g4convert.forward.models import Config, Model
from g4convert.forward.probe import Probe
from g4convert.progress import peak_memory
from g4convert.quantities import duration, plural, rough_size
from g4convert.verification.probes.media import MEDIA

_TRIAL_SIZES: Final = (64, 1024, 4096)
_TRIALS: Final = 5
_MIN_TOLD_SECONDS: Final = 300
"""Seconds from which the time is told; a shorter one is seen by the progress."""
_LEAST_SPEED: Final = 1e9
"""Operations per second of any machine: where they suffice, its own are not measured."""


@dataclass(frozen=True, slots=True)
class ComparisonCost:
    """Estimated cost of a comparison.

    Args:
        operations: number of multiplications and additions.
        memory: peak memory of this process, bytes.
        probes: number of probes.
        predictions: number of scored predictions.
        media: number of probes with pictures, sounds or videos, which are always the bundled ones.
    """

    operations: float
    memory: int
    probes: int
    predictions: int
    media: int = 0

    @classmethod
    def of(cls, model: Model, probes: Sequence[Probe], models: int) -> Self:
        """Estimate the cost of a comparison.

        Args:
            model: one of the models; all have the same shapes and are loaded already.
            probes: probes to run.
            models: number of models that run the probes.
        """
        config = model.config.get_text_config()
        tokens = sum(probe.response.numel() for probe in probes)
        predictions = sum(len(probe.targets) for probe in probes)
        body, head = (
            2.0 * _active_weights(model, config) * tokens,
            2.0 * config.vocab_size * config.hidden_size * predictions,
        )
        states = 2 * 4 * tokens * config.hidden_size * config.num_hidden_layers
        pages = models * PIECE * 4 * (1 + (config.final_logit_softcapping is not None))
        media = sum(probe.bucket in MEDIA for probe in probes)
        return cls(max(1, models) * (body + head), peak_memory() + states + pages, len(probes), predictions, media)

    def line(self, origin: str) -> str:
        """Return the cost as one line for the user; measures the machine's speed if that can matter.

        Args:
            origin: whose prompts they are: `bundled`, `stored` or `own`.
        """
        seconds = self.operations / (
            _measure_speed() if self.operations > _MIN_TOLD_SECONDS * _LEAST_SPEED else _LEAST_SPEED
        )
        time = f", about {duration(60 * round(seconds / 60))}" if seconds >= _MIN_TOLD_SECONDS else ""
        yours = " (--prompts takes yours)" if origin == "bundled" else ""
        prompts = plural(self.probes, f"{origin} prompt")
        if origin == "own" and self.media:
            prompts = (
                f"{plural(self.probes - self.media, 'own prompt')} and {self.media} bundled with pictures or sounds"
            )
        run = f"{prompts}{yours}: {self.predictions:,} predictions"
        return f"{run}, about {rough_size(self.memory)} of memory{time}"


def _active_weights(model: Model, config: Config) -> float:
    """Return the number of weights of the decoder's layers that are active for one token."""
    share = (getattr(config, "top_k_experts", None) or 1) / (getattr(config, "num_experts", None) or 1)
    count: float = sum(
        parameter.numel() * (share if ".experts." in name else 1.0)
        for name, parameter in model.get_decoder().layers.named_parameters()
    )
    return count


def _measure_speed() -> float:
    """Measure operations per second on a matrix product: the fastest of several, as other programs may run."""
    rows, inner, columns = _TRIAL_SIZES
    a, b = torch.ones(rows, inner), torch.ones(columns, inner)
    seconds = []
    for _ in range(_TRIALS):
        began = perf_counter()
        torch.nn.functional.linear(a, b)
        seconds.append(perf_counter() - began)
    return 2.0 * rows * inner * columns / max(min(seconds), 1e-6)
