"""KL of the next token between a model and a changed model, estimated on tokens that are drawn once.

    p    probabilities of the original: its likeliest tokens exactly, the rest as draws of equal weight
    d    difference of the logits of these tokens, changed minus original
    KL   log E_p[exp d] - E_p[d]

The head of a released vocabulary takes most of a forward, and a fit needs hundreds. The likeliest 128 tokens have most
of p, and the draws estimate the rest without bias. Every change is judged on the same draws, so differences between
changes have less noise than a single estimate. No estimate is below 0; an unchanged model has exactly 0.

Letters: p positions, m tokens of each, h hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Final

import torch

from g4convert.forward.logits import Head, HeadLogits, Page, pieces

_LIKELIEST: Final = 128
_DRAWN: Final = 64
_SEED: Final = 0


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """The original's drawn tokens and their logits at the judged positions.

    Args:
        ids: compared tokens, int64 [p, m].
        shares: weight of each token in the expectation, float64 [p, m]; each position sums to 1.
        rows: rows of the head for these tokens, [p, m, h].
        logits: logits of these tokens, float32 [p, m].
        cap: cap of the softcap behind the head; None without a softcap.
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
            head: head of the original, with its weight in memory.
            states: input of the head, [p, h].
        """
        weight, made, page = head.matrix, HeadLogits(head, states), Page()
        generator = torch.Generator().manual_seed(_SEED)
        drawn = [_draw_tokens(made.rows(*piece, page)[0], generator) for piece in pieces(len(made), made.width)]
        ids, shares = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        rows = weight[ids.to(weight.device)]
        return cls(ids, shares, rows, _compute_logits(rows, states, head.cap), head.cap)

    def kl(self, states: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the KL to the original at each position, in nats, float64 [p].

        Args:
            states: input of the head in the changed model, [p, h].
            rows: rows of the changed head, [p, m, h]; None uses the original's.
        """
        change = (_compute_logits(self.rows if rows is None else rows, states, self.cap) - self.logits).double()
        centred = change - (self.shares * change).sum(-1, keepdim=True)
        small = (self.shares * torch.expm1(centred.clamp(-1, 1))).sum(-1).log1p()  # exact for a KL near 0
        large = torch.logsumexp(self.shares.log() + centred, -1)
        return torch.where(centred.abs().amax(-1) < 1, small, large).clamp(min=0)


def _draw_tokens(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and shares, [r, m], drawn by logits, float32 [r, V]; a small vocabulary is taken whole."""
    chances = logits.softmax(-1)
    if chances.shape[-1] <= _LIKELIEST + _DRAWN:
        return torch.arange(chances.shape[-1]).expand_as(chances), chances.double()
    best = chances.topk(_LIKELIEST)
    rest = chances.scatter(-1, best.indices, 0.0)
    drawn = torch.multinomial(rest + torch.finfo(rest.dtype).tiny, _DRAWN, replacement=True, generator=generator)
    left = (1 - best.values.double().sum(-1, keepdim=True)).clamp(min=0).expand(-1, _DRAWN) / _DRAWN
    shares = torch.cat([best.values.double(), left], -1)
    return torch.cat([best.indices, drawn], -1), shares / shares.sum(-1, keepdim=True)


def _compute_logits(rows: torch.Tensor, states: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return the logits after the softcap, float32 [p, m]."""
    raw = torch.bmm(rows, states.to(rows.dtype)[:, :, None])[:, :, 0].float()
    return (raw if cap is None else torch.tanh(raw / cap) * cap).cpu()
