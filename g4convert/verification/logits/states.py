"""Agreement of hidden states and of routers, summed over tokens.

sqnr      -10 log10 of the mean over tokens of |difference|^2 / |reference|^2, in dB; inf if equal.
          The mean of ratios, not the ratio of sums: the first token of Gemma's residual stream has most of the
          stream's energy, and would hide the other tokens.
cosine    mean over tokens; exactly 1 if equal
jaccard   number of experts that both choose over the number that either chooses, mean over tokens
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from g4convert.verification.logits.scores import cosine

_ELEMENTS: Final = 1 << 21
"""Number of elements that are converted to float64 at a time."""


@dataclass(frozen=True, slots=True)
class StateMetrics:
    """Agreement of the hidden states at one place."""

    name: str
    sqnr: float
    cosine: float


@dataclass(frozen=True, slots=True)
class RouterMetrics:
    """Agreement of a layer's routers, and the number of tokens that the reference's router sent to each expert."""

    name: str
    jaccard: float
    hits: tuple[int, ...]


class StateSums:
    """Sums over the tokens seen at one place."""

    def __init__(self) -> None:
        self.tokens = 0
        self.noise = 0.0
        self.cosine = 0.0

    def add(self, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Add states [t, n] of both models; unequal shapes count as infinite noise."""
        self.tokens += len(reference)
        if reference.shape != candidate.shape:
            self.noise = math.inf
            return
        if reference.dtype is candidate.dtype and torch.equal(reference, candidate):
            self.cosine += len(reference)
            return
        step = max(1, _ELEMENTS // reference.shape[-1])
        for a, b in zip(torch.split(reference, step), torch.split(candidate, step), strict=True):
            self._add(a.double(), b.double())

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        signal, noise = a.square().sum(-1), (a - b).square().sum(-1)
        self.noise += float(torch.where(noise == 0, 0.0, noise / signal).sum())
        self.cosine += float(cosine(a, b).sum())

    def metrics(self, name: str) -> StateMetrics:
        """Return the metrics of the sums."""
        return StateMetrics(name, decibels(self.noise / max(1, self.tokens)), self.cosine / max(1, self.tokens))


class RouterSums:
    """Sums over the tokens that one router has seen."""

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.jaccard = 0.0
        self.hits = torch.zeros(experts, dtype=torch.int64)

    def add(self, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Add the experts int64 [t, k] that both routers chose."""
        shared = (reference[:, :, None] == candidate[:, None, :]).any(-1).sum(-1)
        either = reference.shape[1] + candidate.shape[1] - shared
        self.jaccard += float((shared.double() / either).sum())
        self.tokens += len(reference)
        hits = torch.bincount(reference.flatten(), minlength=len(self.hits))
        hits[: len(self.hits)] += self.hits
        self.hits = hits

    def metrics(self, name: str) -> RouterMetrics:
        """Return the metrics of the sums."""
        return RouterMetrics(name, self.jaccard / max(1, self.tokens), tuple(self.hits.tolist()))


def add_states(
    sums: dict[str, StateSums], reference: Mapping[str, torch.Tensor], candidate: Mapping[str, torch.Tensor]
) -> None:
    """Add the states [t, n] of every place that both models have."""
    for name, states in reference.items():
        if name in candidate:
            sums.setdefault(name, StateSums()).add(states, candidate[name])


def decibels(noise: float) -> float:
    """Return the SQNR of a relative noise energy, dB: inf for 0, -inf for inf, nan for nan."""
    if noise == 0:
        return math.inf
    return -10 * math.log10(noise) if math.isfinite(noise) else -noise
