"""Distance of a candidate's outputs from the reference's, over all probes.

    probe +-> reference --> Outputs --+
          +-> candidate --> Outputs --+--> Comparison.add --> a few numbers for each token --> Metrics

Logits are compared on response tokens only: the rows that predict a token of the answer. Hidden states, routers and
embedders are compared on every token but padding, since a fault at an image or a prompt token is a fault, too.

    interval  95 % interval of the mean KL, by bootstrap over sequences: tokens of a sequence are not independent

A reference compared with itself gives exactly 0 (KL, differences) and exactly 1 (agreement, cosines, ratios).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Final

import torch

from g4convert.forward.candidate import ProbeOutputs
from g4convert.forward.probe import Probe
from g4convert.verification.logits.kept import KeptProbe, LayerStates, Projection
from g4convert.verification.logits.pairs import compare
from g4convert.verification.logits.scores import TokenScores, TopLogits
from g4convert.verification.logits.states import RouterMetrics, RouterSums, StateMetrics, StateSums, add_states

CONFIDENT: Final = 0.95
HISTOGRAM_EDGES: Final = tuple(10 ** (power / 4) for power in range(-48, 9))
"""Edges of the KL histogram, a quarter decade apart, 1e-12 to 100 nats; smaller KLs count in the first bin."""

_CONFIDENCE_EDGES: Final = (0.0, 0.5, 0.8, CONFIDENT, 0.99, 1.0)
_RESAMPLES: Final = 2000
_MAX_EXPONENT: Final = 700
"""Exponents from which e^x counts as infinite; math.exp raises OverflowError above ln(largest float64), 709.78."""


@dataclass(frozen=True, slots=True)
class BucketMetrics:
    """The main numbers for one kind of probe, or for one probe."""

    name: str
    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    ppl_ratio: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of tokens on which both models have the same top token, with the reference's confidence in [low, high]."""

    low: float
    high: float
    tokens: int
    agreement: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of a comparison; a metric without tokens to measure it on is nan."""

    tokens: int
    sequences: int
    nonfinite: int
    """Number of tokens with a NaN or an infinity among the candidate's logits."""
    reference_nonfinite: int
    """Number of tokens with a NaN or an infinity among the reference's logits; nothing can be concluded from these."""
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1_agreement: float
    confident_tokens: int
    top1_confident: float
    rms_dp: float
    ppl: float
    """Perplexity of the reference."""
    ppl_ratio: float
    logit_cosine: float
    logit_max_diff: float
    sqnr_min: float
    router_jaccard_min: float
    experts_unhit: int
    """Number of experts, of all layers, that no token was routed to: faults in them are not seen."""
    lower_bound: bool
    """True if KL is a lower bound, because only the reference's likeliest tokens are known."""
    layers: tuple[StateMetrics, ...]
    embedders: tuple[StateMetrics, ...]
    routers: tuple[RouterMetrics, ...]
    buckets: tuple[BucketMetrics, ...]
    probes: tuple[BucketMetrics, ...]
    by_confidence: tuple[Agreement, ...]
    kl_histogram: tuple[int, ...]

    @property
    def values(self) -> dict[str, float]:
        """Single numbers by name, to which thresholds and floors apply."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type in (int, float)}


class Comparison:
    """Accumulator of a comparison, probe by probe; logits and states are not kept.

    Args:
        experts: number of experts in each MoE layer, for the hit counts.
        projection: projection with which the reference's hidden states were kept; None if they were kept whole.
        seed: seed of the bootstrap.
    """

    def __init__(self, *, experts: int = 0, projection: Projection | None = None, seed: int = 0) -> None:
        self._scores: list[TokenScores] = []
        self._sequences: list[torch.Tensor] = []
        self._kinds: list[tuple[str, str]] = []
        self._layers: dict[str, StateSums] = {}
        self._embedders: dict[str, StateSums] = {}
        self._routers: dict[str, RouterSums] = {}
        self._experts = experts
        self._projection = projection
        self._seed = seed
        self._next_sequence = 0
        self._lower_bound = False

    def add(self, probe: Probe, reference: KeptProbe, outputs: ProbeOutputs) -> None:
        """Add one probe."""
        if len(probe.scored):
            scores = compare(reference.logits, outputs.rows, probe.targets)
            self.add_scores(probe, scores, lower_bound=isinstance(reference.logits, TopLogits))
        self.add_states(probe, reference, outputs)

    def add_states(self, probe: Probe, reference: KeptProbe, outputs: ProbeOutputs) -> None:
        """Add the hidden states and chosen experts of one probe; its scores are added by `add_scores`."""
        expected, states = reference.states, LayerStates.of(probe, outputs, self._projection)
        add_states(self._layers, expected.layers, states.layers)
        add_states(self._embedders, expected.embedders, states.embedders)
        for name, chosen in expected.routers.items():
            if name in states.routers:
                self._routers.setdefault(name, RouterSums(self._experts)).add(chosen, states.routers[name])

    def add_scores(self, probe: Probe, scores: TokenScores, *, lower_bound: bool) -> None:
        """Add the scores of one probe's rows; an engine gives nothing but these.

        Args:
            probe: the probe, with the sequence of each row.
            scores: scores of the scored rows.
            lower_bound: whether their KL is a lower bound.
        """
        self._lower_bound = self._lower_bound or lower_bound
        self._scores.append(scores)
        self._sequences.append(probe.sequences + self._next_sequence)
        self._next_sequence += int(probe.sequences.max()) + 1
        self._kinds.append((probe.bucket, probe.name))

    def metrics(self) -> Metrics:
        """Return the metrics of all probes together."""
        scores = TokenScores.cat(self._scores)
        sequences = torch.cat(self._sequences)
        kl = scores.kl
        low, high = _bootstrap(kl, sequences, self._seed)
        quantiles = _quantiles(kl, (0.5, 0.99, 0.999))
        confident = scores.confidence >= CONFIDENT
        layers = tuple(sums.metrics(name) for name, sums in self._layers.items())
        routers = tuple(sums.metrics(name) for name, sums in self._routers.items())
        return Metrics(
            tokens=len(kl),
            sequences=len(set(sequences.tolist())),
            nonfinite=int((~scores.finite).sum()),
            reference_nonfinite=int((~scores.reference_finite).sum()),
            kl_mean=float(kl.mean()),
            kl_low=low,
            kl_high=high,
            kl_median=quantiles[0],
            kl_p99=quantiles[1],
            kl_p999=quantiles[2],
            kl_max=float(kl.max()),
            top1_agreement=_share(scores.agrees),
            confident_tokens=int(confident.sum()),
            top1_confident=_share(scores.agrees[confident]),
            rms_dp=_rms(scores.candidate_logprob.exp() - scores.reference_logprob.exp()),
            ppl=math.exp(-float(scores.reference_logprob.mean())),
            ppl_ratio=_ppl_ratio(scores),
            logit_cosine=float(scores.cosine.mean()),
            logit_max_diff=float(scores.difference.max()),
            sqnr_min=min((layer.sqnr for layer in layers), default=math.nan),
            router_jaccard_min=min((router.jaccard for router in routers), default=math.nan),
            experts_unhit=sum(router.hits.count(0) for router in routers),
            lower_bound=self._lower_bound,
            layers=layers,
            embedders=tuple(sums.metrics(name) for name, sums in self._embedders.items()),
            routers=routers,
            buckets=tuple(self._grouped(0)),
            probes=tuple(self._grouped(1)),
            by_confidence=tuple(_by_confidence(scores)),
            kl_histogram=_histogram(kl),
        )

    def _grouped(self, kind: int) -> Iterable[BucketMetrics]:
        """Yield the main metrics by bucket (`kind` 0) or by probe (1)."""
        groups: dict[str, list[TokenScores]] = {}
        for names, scores in zip(self._kinds, self._scores, strict=True):
            groups.setdefault(names[kind], []).append(scores)
        for name, parts in groups.items():
            scores = TokenScores.cat(parts)
            yield BucketMetrics(
                name=name,
                tokens=len(scores.kl),
                kl_mean=float(scores.kl.mean()),
                kl_p99=_quantiles(scores.kl, (0.99,))[0],
                top1_agreement=_share(scores.agrees),
                ppl_ratio=_ppl_ratio(scores),
            )


def _bootstrap(kl: torch.Tensor, sequences: torch.Tensor, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean by bootstrap over whole sequences; nan with fewer than two sequences."""
    counts = torch.bincount(sequences)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, sequences, kl)
    sums, counts = sums[counts > 0], counts[counts > 0].double()
    if len(counts) < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (_RESAMPLES, len(counts)), generator=generator)
    means = sums[drawn].sum(-1) / counts[drawn].sum(-1)
    low, high = _quantiles(means, (0.025, 0.975))
    return low, high


def _quantiles(values: torch.Tensor, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Return the smallest value that each share does not exceed; torch.quantile interpolates, and refuses 2^24."""
    ordered = values.sort().values
    return tuple(float(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) for share in shares)


def _share(flags: torch.Tensor) -> float:
    return float(flags.double().mean())


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ppl_ratio(scores: TokenScores) -> float:
    exponent = float((scores.reference_logprob - scores.candidate_logprob).mean())
    return math.exp(exponent) if exponent < _MAX_EXPONENT else math.inf


def _by_confidence(scores: TokenScores) -> Iterable[Agreement]:
    for low, high in pairwise(_CONFIDENCE_EDGES):
        below = scores.confidence <= high if high == 1.0 else scores.confidence < high
        in_band = (scores.confidence >= low) & below
        yield Agreement(low, high, int(in_band.sum()), _share(scores.agrees[in_band]))


def _histogram(kl: torch.Tensor) -> tuple[int, ...]:
    """Count the KLs between each two edges; smaller KLs, zero too, go to the first bin, larger KLs to the last."""
    edges = torch.tensor(HISTOGRAM_EDGES[1:-1], dtype=torch.float64)
    bins = torch.bucketize(kl[~kl.isnan()], edges, right=True)
    return tuple(torch.bincount(bins, minlength=len(HISTOGRAM_EDGES) - 1).tolist())
