"""Kept part of a model's outputs, in memory until the candidate has run, or for good in a file.

Full outputs of all probes are gigabytes: 1 MiB of logits per token, 11 KiB of residual per token and layer. So instead
of the logits the states before the head are kept (`forward.logits`), and hidden states may be kept as a random
projection to 64 numbers. The projection preserves lengths, so the SQNR of two projections estimates the SQNR of the
states (to 8 % for one token, better for the mean of many), and equal states have equal projections.

    logits       of the n response tokens: the states before the head, [n, h];
                 or only the k likeliest tokens of each distribution, with their log-probabilities
    layers       float32 [t, h], or [t, 64], of the t tokens but padding; embedders [rows, h] or [rows, 64]
    routers      int64 [t, k]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch

from g4convert.forward.candidate import ProbeOutputs
from g4convert.forward.logits import Logits
from g4convert.forward.probe import Probe
from g4convert.verification.logits.pairs import likeliest
from g4convert.verification.logits.scores import TopLogits


class Projection:
    """Random projections of states of any width; the same seed gives the same projections."""

    def __init__(self, dims: int = 64, *, seed: int = 0, matrices: Mapping[int, torch.Tensor] | None = None) -> None:
        self.dims: Final = dims
        self._seed = seed
        self.matrices: Final = dict(matrices or {})

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Project states float32 [t, h] to [t, dims]; states with h <= dims are returned unchanged."""
        width = states.shape[-1]
        if width <= self.dims:
            return states
        if width not in self.matrices:
            generator = torch.Generator().manual_seed(self._seed + width)
            self.matrices[width] = torch.randn(width, self.dims, generator=generator) / self.dims**0.5
        return states @ self.matrices[width]


@dataclass(frozen=True, slots=True)
class LayerStates:
    """Hidden states and chosen experts of all tokens but padding, by place."""

    layers: Mapping[str, torch.Tensor]
    embedders: Mapping[str, torch.Tensor]
    routers: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, probe: Probe, outputs: ProbeOutputs, projection: Projection | None) -> Self:
        """Return the states of one probe's outputs, projected; a `projection` of None keeps them whole."""
        attended = probe.attended

        def keep(states: torch.Tensor) -> torch.Tensor:
            return states if projection is None else projection(states)

        return cls(
            layers={name: keep(states[attended]) for name, states in outputs.layers.items()},
            embedders={name: keep(states) for name, states in sorted(outputs.embedders.items())},
            routers={name: chosen[attended] for name, chosen in outputs.routers.items()},
        )


NOTHING: Final = LayerStates({}, {}, {})
"""Empty states, for a model with which no other is compared."""


@dataclass(frozen=True, slots=True)
class KeptProbe:
    """The kept outputs of one probe."""

    logits: Logits | TopLogits
    states: LayerStates

    @classmethod
    def of(
        cls,
        probe: Probe,
        outputs: ProbeOutputs,
        *,
        projection: Projection | None = None,
        top: int = 0,
        inside: bool = True,
    ) -> Self:
        """Return the part of one probe's outputs that is needed later.

        Args:
            probe: the probe, with the rows that are scored.
            outputs: outputs of the model on the probe.
            projection: projection of hidden states; None keeps them whole.
            top: number of tokens of each distribution to keep; 0 keeps the states before the head.
            inside: whether to keep hidden states and chosen experts.
        """
        states = LayerStates.of(probe, outputs, projection) if inside else NOTHING
        if top:
            return cls(likeliest(outputs.rows, probe.targets, top), states)
        return cls(outputs.rows, states)
