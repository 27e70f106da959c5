"""Scores of two models' logits of the same tokens: a few numbers for each token.

Logits are large (262144 x 4 bytes per token), so both models' logits are computed and read a few rows at a time, and
only the scores are kept. Scores are computed in float64 (`row_sums`), because they are differences: the KL of a good
parity is 1e-10, which is lost in the rounding of a float32 log-softmax.

    kl              sum p (log p - log q) over the whole vocabulary, in nats; p is the reference
    cosine          cosine of the logits before the softcap; exactly 1 for equal rows

A token with a logit that is not finite has infinite KL and agrees with nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.verification.logits.row_sums import COLUMNS, log_sums, score_rows

_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of `t` tokens, each float64 [t] unless stated."""

    kl: torch.Tensor
    reference_logprob: torch.Tensor
    """Log-probability of the true token."""
    candidate_logprob: torch.Tensor
    agrees: torch.Tensor
    """bool [t]: both have the same likeliest token."""
    confidence: torch.Tensor
    """The reference's probability of its likeliest token."""
    cosine: torch.Tensor
    """Cosine of the logits before softcap; nan if only some of the reference's logits are known."""
    difference: torch.Tensor
    """The largest |difference| of the logits before softcap."""
    finite: torch.Tensor
    """bool [t]: every logit of the candidate is finite."""
    reference_finite: torch.Tensor
    """bool [t]: every logit of the reference is finite; if not, nothing can be concluded and KL is nan."""

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Concatenate the scores of several parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def split(self, counts: Sequence[int]) -> list[Self]:
        """Split the scores into parts of `counts` tokens, the inverse of `cat`."""
        parts = [getattr(self, field.name).split(list(counts)) for field in fields(self)]
        return [type(self)(*tensors) for tensors in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The k likeliest tokens of each distribution, kept of a reference whose full logits are too large.

    Args:
        ids: int64 [t, k], token ids, likeliest first.
        logprobs: float32 [t, k], log-probabilities of these tokens.
        log_sum_exp: float32 [t]; a logit is its log-probability plus this.
        target_logprob: float32 [t], log-probability of the true token.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    log_sum_exp: torch.Tensor
    target_logprob: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, begin: int, end: int) -> "TopLogits":
        """Return rows [begin, end)."""
        return TopLogits(*(getattr(self, field.name)[begin:end] for field in fields(self)))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def top_logits(logits: torch.Tensor, targets: torch.Tensor, k: int) -> TopLogits:
    """Return the k likeliest tokens of logits [t, v]; `targets` int64 [t] are the true tokens."""
    ids, logprobs, sums, true = [], [], [], []
    for rows in _row_slices(logits):
        total = reduce_rows(logits[rows])[:, 0]
        best = logits[rows].topk(min(k, logits.shape[-1]))
        ids.append(best.indices)
        logprobs.append(best.values.double() - total[:, None])
        sums.append(total)
        true.append(_pick(logits[rows], targets[rows]).double() - total)
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
        candidate: the candidate's logits after softcap, [t, v].
        targets: int64 [t], the true tokens.
        raw: both models' logits before softcap; by default cosine and difference are of the logits after softcap.

    Returns:
        The scores.
    """
    a, b, x, y = (_as_array(logits) for logits in (reference, candidate, *(raw or (reference, candidate))))
    out = np.zeros((len(a), COLUMNS))
    _run_in_threads(lambda rows: score_rows(a[rows], b[rows], x[rows], y[rows], out[rows]), len(a))
    kl, log_p, log_q, best_p, best_q, alike, apart, reference_finite, finite = torch.from_numpy(out).unbind(-1)
    reference_finite, finite = reference_finite.bool(), finite.bool()
    both_finite = reference_finite & finite
    p, q = (_pick(logits, targets).double() - total for logits, total in ((reference, log_p), (candidate, log_q)))
    top = _pick(reference, best_p.long()).double() - log_p
    return TokenScores(
        kl=torch.where(reference_finite, torch.where(finite, kl, torch.inf), torch.nan),
        reference_logprob=torch.where(reference_finite, p, torch.nan),
        candidate_logprob=torch.where(finite, q, -torch.inf),
        agrees=both_finite & (best_p == best_q),
        confidence=torch.where(reference_finite, top.exp(), torch.nan),
        cosine=torch.where(both_finite, alike, -1.0),
        difference=torch.where(both_finite, apart, torch.inf),
        finite=finite,
        reference_finite=reference_finite,
    )


def score_top(reference: TopLogits, candidate: torch.Tensor, targets: torch.Tensor) -> TokenScores:
    """Compare a candidate with a reference whose likeliest tokens alone are known.

    The vocabulary is divided into the known tokens, one part each, and all other tokens as one part. The KL between
    the two distributions over these parts is a lower bound of the full KL (data processing inequality): differences
    inside the last part are not seen.

    Args:
        reference: the known part of the reference, of t tokens.
        candidate: logits [t, v].
        targets: int64 [t], the true tokens.

    Returns:
        The scores; the difference is of the known logits after softcap, cosines are nan.
    """
    log_q, best, whole = reduce_rows(candidate).unbind(-1)
    finite = whole.bool()
    known_p = reference.logprobs.double()
    near = candidate.gather(-1, reference.ids).double()
    known_q = near - log_q[:, None]
    shared = (known_p.exp() * (known_p - known_q)).sum(-1) + tail_kl(known_p, known_q)
    logits = known_p + reference.log_sum_exp.double()[:, None]
    return TokenScores(
        kl=torch.where(finite, shared.clamp(min=0), torch.inf),
        reference_logprob=reference.target_logprob.double(),
        candidate_logprob=torch.where(finite, _pick(candidate, targets).double() - log_q, -torch.inf),
        agrees=finite & (reference.ids[:, 0] == best),
        confidence=known_p[:, 0].exp(),
        cosine=torch.full_like(shared, torch.nan),
        difference=torch.where(finite, (logits - near).abs().amax(-1), torch.inf),
        finite=finite,
        reference_finite=reference.logprobs.isfinite().all(-1),
    )


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of rows [t, n], float64 [t]; exactly 1 for equal rows."""
    unit_a, unit_b = (torch.nn.functional.normalize(x, dim=-1, eps=1e-300) for x in (a, b))
    return 1 - (unit_a - unit_b).square().sum(-1) / 2


def tail_kl(known_p: torch.Tensor, known_q: torch.Tensor) -> torch.Tensor:
    """Return the KL term of all unknown tokens, taken as one; both arguments are log-probabilities [t, k]."""
    floor = 1e-12  # stored log-probabilities are float32: the probability of the tail is not known better
    tail_p, tail_q = ((1 - known.exp().sum(-1)).clamp(min=floor) for known in (known_p, known_q))
    return torch.where(tail_p > 1e-6, tail_p * (tail_p.log() - tail_q.log()), 0.0)


def _pick(logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logprobs.gather(-1, targets[:, None]).squeeze(-1)


def reduce_rows(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-sum-exp, the place of the largest logit and whether all are finite, float64 [t, 3]."""
    rows, out = _as_array(logits), np.zeros((len(logits), 3))
    _run_in_threads(lambda some: log_sums(rows[some], out[some]), len(rows))
    return torch.from_numpy(out)


def _as_array(logits: torch.Tensor) -> F32:
    array: F32 = logits.contiguous().numpy()
    return array


def _run_in_threads(work: Callable[[slice], None], rows: int) -> None:
    """Run `work` on the rows, on torch's number of threads; each row is one thread's, so sums have a fixed order."""
    threads = min(torch.get_num_threads(), rows)
    if threads < 2:
        work(slice(0, rows))
        return
    step = -(-rows // threads)
    list(_pool(threads).map(work, [slice(begin, begin + step) for begin in range(0, rows, step)]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scores")


def _row_slices(logits: torch.Tensor) -> Iterator[slice]:
    """Yield slices of the rows of logits, of about 16 MiB each."""
    step = max(1, _ELEMENTS // logits.shape[-1])
    for begin in range(0, len(logits), step):
        yield slice(begin, begin + step)
