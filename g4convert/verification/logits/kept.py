"""The part of the reference's outputs that is kept until the candidate has run, or for good in a file.

Full outputs of all probes are gigabytes: 1 MiB of logits a token, 11 KiB of residual a token and layer. So of logits
the states that they are made of are kept (`forward.logits`), and hidden states may be kept as a random projection to
64 numbers: it keeps lengths, so the SQNR of two projections estimates that of the states (8 % for one token, less for
the mean of many), and equal states have equal projections.

    logits       of the n response tokens: the states before the head, [n, h];
                 or only the k likeliest tokens of each, with their log-probabilities
    layers       float32 [t, h], or [t, 64], of the t tokens that are not padding; embedders [rows, h] or [rows, 64]
    routers      int64 [t, k]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch

from g4convert.forward.candidate import Outputs
from g4convert.forward.logits import Logits
from g4convert.forward.probe import Probe
from g4convert.verification.logits.pairs import likeliest
from g4convert.verification.logits.scores import TopLogits

__all__ = ["NOTHING", "Kept", "Projection", "States"]


class Projection:
    """Random projections of states of any width; the same seed gives the same.

    Args:
        dims: numbers that a state becomes.
        seed: seed of the matrices.
        matrices: those that are known, by width.
    """

    def __init__(self, dims: int = 64, *, seed: int = 0, matrices: Mapping[int, torch.Tensor] | None = None) -> None:
        self.dims: Final = dims
        self._seed = seed
        self.matrices: Final = dict(matrices or {})

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """[t, h] -> [t, dims], float32; narrow states stay as they are."""
        width = states.shape[-1]
        if width <= self.dims:
            return states
        if width not in self.matrices:
            generator = torch.Generator().manual_seed(self._seed + width)
            self.matrices[width] = torch.randn(width, self.dims, generator=generator) / self.dims**0.5
        return states @ self.matrices[width]


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states and choices of the tokens that are not padding."""

    layers: Mapping[str, torch.Tensor]
    embedders: Mapping[str, torch.Tensor]
    routers: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, probe: Probe, outputs: Outputs, projection: Projection | None) -> Self:
        """Those of one probe's outputs; None keeps states whole."""
        attended = probe.attended

        def kept(states: torch.Tensor) -> torch.Tensor:
            return states if projection is None else projection(states)

        return cls(
            layers={name: kept(states[attended]) for name, states in outputs.layers.items()},
            embedders={name: kept(states) for name, states in sorted(outputs.embedders.items())},
            routers={name: chosen[attended] for name, chosen in outputs.routers.items()},
        )


NOTHING: Final = States({}, {}, {})
"""States of a model that is compared no further."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept outputs of one probe."""

    logits: Logits | TopLogits
    states: States

    @classmethod
    def of(
        cls,
        probe: Probe,
        outputs: Outputs,
        *,
        projection: Projection | None = None,
        top: int = 0,
        inside: bool = True,
    ) -> Self:
        """Keep the part of one probe's outputs that is needed later.

        Args:
            probe: says which rows count.
            outputs: outputs of the model on it.
            projection: projection of hidden states; None keeps them whole.
            top: number of tokens of each distribution to keep; 0 keeps states that all are made of.
            inside: whether to keep hidden states and choices.
        """
        states = States.of(probe, outputs, projection) if inside else NOTHING
        if top:
            return cls(likeliest(outputs.rows, probe.targets, top), states)
        return cls(outputs.rows, states)
