"""Comparison of several models' logits of the same rows, pair by pair and a piece of the rows at a time.

    a piece of 128 rows: original --head--> logits --+-- loss
                         dequantized ------> logits --+-- noise, parity, ...
                         packed -----------> logits --+

Every model's logits of a piece are computed once, for all pairs that the model is in, into buffers that are reused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch

from g4convert.forward.logits import HeadLogits, HeldLogits, Logits, Page, Rows, compute_together, join_logits, pieces
from g4convert.verification.logits.scores import TokenScores, TopLogits, score, score_top, top_logits

Pair: TypeAlias = tuple[str, str]
"""Names of a reference and a candidate."""
_Known: TypeAlias = Logits | TopLogits


def score_pairs(
    named: Mapping[str, Sequence[_Known]],
    pairs: Sequence[Pair],
    targets: Sequence[torch.Tensor],
    *,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[Pair, list[TokenScores]]:
    """Score pairs of models on the same probes.

    Args:
        named: logits of every probe, by name of the model.
        pairs: pairs to score; only the logits of a reference may be `TopLogits`.
        targets: true tokens of each probe, int64 [n].
        tell: called after each piece with its number of rows.

    Returns:
        The scores of each probe, by pair.
    """
    counts = [len(probe_targets) for probe_targets in targets]
    together = {name: _concatenate(parts) for name, parts in named.items()}
    whole = [torch.cat(list(targets))] if all(len(parts) == 1 for parts in together.values()) else list(targets)
    if len(whole) == len(targets):
        together = {name: list(parts) for name, parts in named.items()}
    scored: dict[Pair, list[TokenScores]] = {pair: [] for pair in pairs}
    pages = {name: Page() for name in named}
    for number, true in enumerate(whole):
        probe_logits = {name: parts[number] for name, parts in together.items()}
        for pair, scores in _score_rows(probe_logits, pairs, true, pages, tell).items():
            scored[pair].append(scores)
    return {pair: TokenScores.cat(parts).split(counts) for pair, parts in scored.items()}


def compare(
    reference: _Known, candidate: Logits, targets: torch.Tensor, pages: Mapping[str, Page] | None = None
) -> TokenScores:
    """Score one model against another on the rows of one probe.

    Args:
        reference: logits of the reference.
        candidate: logits of the candidate.
        targets: int64 [n], the true tokens.
        pages: buffers to use, by the keys `reference` and `candidate`; new buffers by default.
    """
    named = {"reference": reference, "candidate": candidate}
    pair = ("reference", "candidate")
    return _score_rows(named, [pair], targets, pages or {name: Page() for name in pair})[pair]


def likeliest(logits: Logits, targets: torch.Tensor, k: int) -> TopLogits:
    """Return the k likeliest tokens of each row; `targets` int64 [n] are the true tokens."""
    page = Page()
    parts = [
        top_logits(logits.rows(begin, end, page)[0], targets[begin:end], k)
        for begin, end in pieces(len(logits), logits.width)
    ]
    return TopLogits.cat(parts)


def _score_rows(
    named: Mapping[str, _Known],
    pairs: Sequence[Pair],
    targets: torch.Tensor,
    pages: Mapping[str, Page],
    tell: Callable[[int], None] = lambda _: None,
) -> dict[Pair, TokenScores]:
    scored: dict[Pair, list[TokenScores]] = {pair: [] for pair in pairs}
    width = max(logits.width for logits in named.values() if not isinstance(logits, TopLogits))
    for begin, end in pieces(len(targets), width):
        true = targets[begin:end]
        piece: dict[str, TopLogits | Rows] = {
            name: logits.rows(begin, end) for name, logits in named.items() if not isinstance(logits, HeadLogits)
        }
        piece |= compute_together(
            {name: logits for name, logits in named.items() if isinstance(logits, HeadLogits)}, begin, end, pages
        )
        for pair in pairs:
            scored[pair].append(_score_piece(piece[pair[0]], piece[pair[1]], true))
        tell(end - begin)
    return {pair: TokenScores.cat(parts) for pair, parts in scored.items()}


def _score_piece(reference: TopLogits | Rows, candidate: TopLogits | Rows, targets: torch.Tensor) -> TokenScores:
    """Score one piece of a pair."""
    assert not isinstance(candidate, TopLogits)  # noqa: S101 -- only a stored reference has these
    if isinstance(reference, TopLogits):
        return score_top(reference, candidate[0], targets)
    before = reference[1], candidate[1]
    raw = None if before[0] is None or before[1] is None else (before[0], before[1])
    return score(reference[0], candidate[0], targets, raw=raw)


def _concatenate(parts: Sequence[_Known]) -> list[_Known]:
    """Concatenate the logits of all probes if they are of one kind and head."""
    top = [part for part in parts if isinstance(part, TopLogits)]
    if top:
        return [TopLogits.cat(top)]
    plain = [part for part in parts if isinstance(part, HeadLogits | HeldLogits)]
    return list(join_logits(plain))
