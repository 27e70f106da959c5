"""Two models' logits of the same tokens, reduced to a few numbers for each token.

Logits are large (262144 x 4 bytes a token) and there are two sets of them, so they are read in pieces of a few
rows, in float64, and only the scores are kept. float64 because scores are differences: the KL of a good parity is
1e-10, which float32 log-softmax drowns.

    kl              sum p (log p - log q) over the whole vocabulary, in nats; p is the reference
    cosine          1 - |a/|a| - b/|b||^2 / 2, which is exactly 1 for equal vectors where a.b / |a||b| is not

A token with a logit that is not finite has infinite KL and agrees with nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch

__all__ = ["TokenScores", "TopLogits", "cosine", "score", "score_top", "tail_kl", "top_logits"]

_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of `t` tokens, each float64 [t] unless stated."""

    kl: torch.Tensor
    reference_logprob: torch.Tensor
    """Log-probability of the true token."""
    candidate_logprob: torch.Tensor
    agrees: torch.Tensor
    """bool [t]: both find the same token likeliest."""
    confidence: torch.Tensor
    """The reference's probability of its likeliest token."""
    cosine: torch.Tensor
    """Cosine of the logits before softcap; nan where not all of the reference's are known."""
    difference: torch.Tensor
    """The largest |difference| of the logits before softcap."""
    finite: torch.Tensor
    """bool [t]: every logit of the candidate is."""
    reference_finite: torch.Tensor
    """bool [t]: every logit of the reference is; where not, nothing can be concluded and KL is nan."""

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """The scores of all tokens, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The part of a reference's logits that is kept when not all of them can be.

    Args:
        ids: int64 [t, k], likeliest first.
        logprobs: float32 [t, k] of those.
        log_sum_exp: float32 [t]; a logit is its log-probability and this.
        target_logprob: float32 [t], of the true token.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    log_sum_exp: torch.Tensor
    target_logprob: torch.Tensor


def top_logits(logits: torch.Tensor, targets: torch.Tensor, k: int) -> TopLogits:
    """The k likeliest tokens of logits [t, v], whose true tokens are int64 [t]."""
    ids, logprobs, sums, true = [], [], [], []
    for rows in _pieces(logits):
        values = logits[rows].double()
        total = values.logsumexp(-1)
        best = values.topk(min(k, values.shape[-1]))
        ids.append(best.indices)
        logprobs.append(best.values - total[:, None])
        sums.append(total)
        true.append(_of(values, targets[rows]) - total)
    return TopLogits(torch.cat(ids), *(torch.cat(parts).float() for parts in (logprobs, sums, true)))


def score(
    reference: torch.Tensor,
    candidate: torch.Tensor,
    targets: torch.Tensor,
    *,
    raw: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> TokenScores:
    """Compare two sets of logits.

    Args:
        reference: logits [t, v] after softcap.
        candidate: the other's, [t, v].
        targets: int64 [t], the true tokens.
        raw: both before softcap; without, cosine and difference are of the logits after it.

    Returns:
        The scores.
    """
    before = raw or (reference, candidate)
    parts = []
    for rows in _pieces(reference):
        p, q = (logits[rows].double().log_softmax(-1) for logits in (reference, candidate))
        finite = candidate[rows].isfinite().all(-1)
        known = reference[rows].isfinite().all(-1)
        kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)  # rounding gives -1e-17 for the nearly equal
        a, b = (logits[rows].double() for logits in before)
        parts.append(
            TokenScores(
                kl=torch.where(known, torch.where(finite, kl, torch.inf), torch.nan),
                reference_logprob=_of(p, targets[rows]),
                candidate_logprob=torch.where(finite, _of(q, targets[rows]), -torch.inf),
                agrees=finite & (p.argmax(-1) == q.argmax(-1)),
                confidence=p.amax(-1).exp(),
                cosine=torch.where(finite, cosine(a, b), -1.0),
                difference=torch.where(finite, (a - b).abs().amax(-1), torch.inf),
                finite=finite,
                reference_finite=known,
            )
        )
    return TokenScores.cat(parts)


def score_top(reference: TopLogits, candidate: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    """Compare with a reference of which only the likeliest tokens are known.

    The vocabulary is cut into the known tokens, one by one, and all others together. The KL between the two
    distributions over these parts is a lower bound of the real one (data processing inequality): what differs
    inside the tail is not seen.

    Args:
        reference: what is known, of t tokens.
        candidate: logits [t, v].
        targets: int64 [t], the true tokens.

    Returns:
        The scores; the difference is of the known logits after softcap, cosines are nan.
    """
    parts = []
    for rows in _pieces(candidate):
        q = candidate[rows].double().log_softmax(-1)
        finite = candidate[rows].isfinite().all(-1)
        known_p, known_q = reference.logprobs[rows].double(), q.gather(-1, reference.ids[rows])
        shared = (known_p.exp() * (known_p - known_q)).sum(-1) + tail_kl(known_p, known_q)
        logits = known_p + reference.log_sum_exp[rows].double()[:, None]
        difference = (logits - candidate[rows].double().gather(-1, reference.ids[rows])).abs().amax(-1)
        parts.append(
            TokenScores(
                kl=torch.where(finite, shared.clamp(min=0), torch.inf),
                reference_logprob=reference.target_logprob[rows].double(),
                candidate_logprob=torch.where(finite, _of(q, targets[rows]), -torch.inf),
                agrees=finite & (reference.ids[rows, 0] == q.argmax(-1)),
                confidence=known_p[:, 0].exp(),
                cosine=torch.full_like(shared, torch.nan),
                difference=torch.where(finite, difference, torch.inf),
                finite=finite,
                reference_finite=reference.logprobs[rows].isfinite().all(-1),
            )
        )
    return TokenScores.cat(parts)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The cosine of rows [t, n], float64; exactly 1 for equal rows."""
    unit_a, unit_b = (torch.nn.functional.normalize(x, dim=-1, eps=1e-300) for x in (a, b))
    return 1 - (unit_a - unit_b).square().sum(-1) / 2


def tail_kl(known_p: torch.Tensor, known_q: torch.Tensor) -> torch.Tensor:
    """Return what the unknown tokens add, taken as one; both are log-probabilities [t, k]."""
    floor = 1e-12  # stored log-probabilities are float32: what is left beside them is not known better
    tail_p, tail_q = ((1 - known.exp().sum(-1)).clamp(min=floor) for known in (known_p, known_q))
    return torch.where(tail_p > 1e-6, tail_p * (tail_p.log() - tail_q.log()), 0.0)


def _of(logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logprobs.gather(-1, targets[:, None]).squeeze(-1)


def _pieces(logits: torch.Tensor) -> Iterator[slice]:
    """Rows at a time, so that a piece in float64 is about 32 MiB."""
    step = max(1, _ELEMENTS // logits.shape[-1])
    for begin in range(0, len(logits), step):
        yield slice(begin, begin + step)
