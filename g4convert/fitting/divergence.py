"""KL of the next token between a model and a changed one, on a part of the vocabulary that is drawn once.

    p    probabilities of the original: its likeliest tokens one by one, the rest as draws of equal weight
    d    what a change adds to the logits of these tokens
    KL   log E_p[exp d] - E_p[d]

A head of the released vocabulary is most of a forward, and a fit needs hundreds. The likeliest 128 tokens have most
of p, and the expectation over the draws is right; every change is judged on the same draws, so that differences between
changes are smaller than the noise of one. No estimate is below 0, and no change costs exactly 0.

Letters: p positions, m tokens of each, h hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Final

import torch

from g4convert.forward.logits import Head, Made, Page, pieces

__all__ = ["Divergence"]

_LIKELIEST: Final = 128
_DRAWN: Final = 64
_SEED: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """The original's answer at some positions.

    Args:
        ids: tokens that are compared, int64 [p, m].
        shares: weight of each in the expectation, float64 [p, m], 1 at each position.
        rows: their rows of the head, [p, m, h].
        logits: their logits, float32 [p, m].
        cap: cap of the softcap behind the head; None has none.
    """

    ids: torch.Tensor
    shares: torch.Tensor
    rows: torch.Tensor
    logits: torch.Tensor
    cap: float | None

    @classmethod
    def of(cls, head: Head, states: torch.Tensor) -> "Divergence":
        """Draw the tokens.

        Args:
            head: head of the original; its weight is there.
            states: what it is given, [p, h].
        """
        weight, made, page = _weight(head), Made(head, states), Page()
        generator = torch.Generator().manual_seed(_SEED)
        found = [_drawn(made.rows(*piece, page)[0], generator) for piece in pieces(len(made), made.width)]
        ids, shares = (torch.cat(parts) for parts in zip(*found, strict=True))
        rows = weight[ids.to(weight.device)]
        return cls(ids, shares, rows, _logits(rows, states, head.cap), head.cap)

    def kl(self, states: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """KL of each position to the original, in nats, float64 [p].

        Args:
            states: what the changed model gives its head, [p, h].
            rows: rows of the changed head, [p, m, h]; None has the original's.
        """
        change = (_logits(self.rows if rows is None else rows, states, self.cap) - self.logits).double()
        centred = change - (self.shares * change).sum(-1, keepdim=True)
        small = (self.shares * torch.expm1(centred.clamp(-1, 1))).sum(-1).log1p()  # exact where KL is next to nothing
        large = torch.logsumexp(self.shares.log() + centred, -1)
        return torch.where(centred.abs().amax(-1) < 1, small, large).clamp(min=0)


def _weight(head: Head) -> torch.Tensor:
    if head.weight is None:
        raise TypeError("the head of an original is a plain matrix")
    return head.weight


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their shares of some rows of logits, float32 [r, V]; all of a small vocabulary."""
    chances = logits.softmax(-1)
    if chances.shape[-1] <= _LIKELIEST + _DRAWN:
        return torch.arange(chances.shape[-1]).expand_as(chances), chances.double()
    best = chances.topk(_LIKELIEST)
    rest = chances.scatter(-1, best.indices, 0.0)
    drawn = torch.multinomial(rest + torch.finfo(rest.dtype).tiny, _DRAWN, replacement=True, generator=generator)
    left = (1 - best.values.double().sum(-1, keepdim=True)).clamp(min=0).expand(-1, _DRAWN) / _DRAWN
    shares = torch.cat([best.values.double(), left], -1)
    return torch.cat([best.indices, drawn], -1), shares / shares.sum(-1, keepdim=True)


def _logits(rows: torch.Tensor, states: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Logits after the softcap, float32 [p, m]."""
    raw = torch.bmm(rows, states.to(rows.dtype)[:, :, None])[:, :, 0].float()
    return (raw if cap is None else torch.tanh(raw / cap) * cap).cpu()
