"""Comparison of an engine's log-probabilities with the dequantized model's, on the tokens that the engine names.

    kl            over the named tokens, and all others as one: a lower bound, exact if all tokens are named
    difference    the largest |difference| of log-probabilities of a row, the next token's included
    spread        the mean |difference| of a row

The reference p is the dequantized model. To measure how far rounding alone moves these numbers, the reference with
noise is scored as if it were an engine.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from g4convert.forward.candidate import ProbeOutputs
from g4convert.forward.logits import Page, pieces
from g4convert.forward.probe import Probe
from g4convert.verification.logits.kept import KeptProbe
from g4convert.verification.logits.metrics import Comparison, Metrics
from g4convert.verification.logits.pairs import likeliest
from g4convert.verification.logits.scores import TokenScores, TopLogits, reduce_rows, tail_kl

_ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Differences of log-probabilities in one kind of probe."""

    name: str
    tokens: int
    largest: float
    mean: float
    top1_agreement: float
    kl_mean: float


@dataclass(frozen=True, slots=True)
class Parity:
    """Measurements of one engine, or of the reference with noise.

    Args:
        metrics: metrics over all tokens.
        buckets: differences by kind of probe; the first bucket has all probes.
    """

    metrics: Metrics
    buckets: Mapping[str, Bucket]

    @property
    def all(self) -> Bucket:
        """Differences over all probes."""
        return self.buckets[_ALL]


class AnswerSums:
    """Accumulator of an engine's answers, probe by probe."""

    def __init__(self) -> None:
        self._comparison = Comparison()
        self._page = Page()
        self._rows: dict[str, list[tuple[TokenScores, torch.Tensor]]] = {_ALL: []}

    def add(self, probe: Probe, reference: KeptProbe, answer: TopLogits) -> None:
        """Add one probe."""
        logits = reference.logits
        assert not isinstance(logits, TopLogits)  # noqa: S101 -- kept by the caller
        parts = [
            score_answer(logits.rows(begin, end, self._page)[0], answer.rows(begin, end), probe.targets[begin:end])
            for begin, end in pieces(len(logits), logits.width)
        ]
        scores = TokenScores.cat([part for part, _ in parts])
        spread = torch.cat([part for _, part in parts])
        cut = answer.ids.shape[-1] < logits.width
        self._comparison.add_scores(probe, scores, lower_bound=cut)
        for name in (_ALL, probe.bucket):
            self._rows.setdefault(name, []).append((scores, spread))

    def add_outputs(self, probe: Probe, reference: KeptProbe, outputs: ProbeOutputs, top: int) -> None:
        """Add a model's logits as if an engine had answered with the `top` likeliest tokens, or with all for -1."""
        rows = outputs.rows
        self.add(probe, reference, likeliest(rows, probe.targets, top if top > 0 else rows.width))

    def parity(self) -> Parity:
        """Return the metrics of all probes together."""
        return Parity(self._comparison.metrics(), {bucket.name: bucket for bucket in self._buckets()})

    def _buckets(self) -> Iterator[Bucket]:
        for name, parts in self._rows.items():
            scores = TokenScores.cat([part for part, _ in parts])
            spread = torch.cat([part for _, part in parts])
            yield Bucket(
                name=name,
                tokens=len(spread),
                largest=float(scores.difference.max()),
                mean=float(spread.mean()),
                top1_agreement=float(scores.agrees.double().mean()),
                kl_mean=float(scores.kl.mean()),
            )


def score_answer(reference: torch.Tensor, answer: TopLogits, targets: torch.Tensor) -> tuple[TokenScores, torch.Tensor]:
    """Compare rows of an answer with the reference's logits.

    Args:
        reference: logits [n, V] after softcap.
        answer: the engine's k likeliest tokens of each row; the log-sum-exp is not read.
        targets: int64 [n], the next tokens.

    Returns:
        The scores, and the mean |difference| of each row, float64 [n]. Cosines are nan: the engine's logits before
        the log-softmax are not known.
    """
    log_sum, best, whole = reduce_rows(reference).unbind(-1)
    reference_is_finite = whole.bool()
    ids, known_q, true = answer.ids, answer.logprobs.double(), answer.target_logprob.double()
    known_p = reference.gather(-1, ids).double() - log_sum[:, None]
    true_p = reference.gather(-1, targets[:, None]).squeeze(-1).double() - log_sum
    finite = known_q.isfinite().all(-1) & true.isfinite()
    kl = (known_p.exp() * (known_p - known_q)).sum(-1) + tail_kl(known_p, known_q)
    away = torch.cat([known_p - known_q, (true_p - true)[:, None]], dim=-1).abs()
    scores = TokenScores(
        kl=torch.where(reference_is_finite, torch.where(finite, kl.clamp(min=0), torch.inf), torch.nan),
        reference_logprob=true_p,
        candidate_logprob=torch.where(finite, true, -torch.inf),
        agrees=finite & (ids.gather(-1, known_q.argmax(-1, keepdim=True)).squeeze(-1) == best),
        confidence=(reference.amax(-1).double() - log_sum).exp(),
        cosine=torch.full_like(true_p, torch.nan),
        difference=torch.where(finite, away.amax(-1), torch.inf),
        finite=finite,
        reference_finite=reference_is_finite,
    )
    return scores, torch.where(finite, away.mean(-1), torch.inf)
