"""Checks of the towers' embedders and poolers on inputs that expose single faults, which whole forwards hide in noise.

embedder     the norm comes before the projection; the inputs are rows of very different size, since a norm after the
             projection would make these equal
pooler       wide, tall and padded pictures, compared with means computed cell by cell
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

import torch
from torch.nn import functional

from g4convert.devices import device_of
from g4convert.forward.models import Model
from g4convert.report import Finding, Severity
from g4convert.verification.logits.parts import label
from g4convert.verification.logits.states import StateSums

_SAME_FAULT_DB: Final = 20.0
"""SQNR in dB from which an output counts as that of a known fault."""


def check_embedders(reference: Model, candidate: Model, *, limit: float) -> Iterator[Finding]:
    """Probe the multimodal embedders, of images and of audio.

    Args:
        reference: the reference model.
        candidate: the model to check, of the same dtype.
        limit: SQNR in dB below which an output is wrong.
    """
    others = dict(candidate.named_modules())
    for name, module in reference.named_modules():
        if hasattr(module, "embedding_pre_projection_norm") and name in others:
            x = _uneven_rows(module.embedding_projection.in_features).to(device_of(reference), reference.dtype)
            answers: dict[str, torch.Tensor] = {}
            note = partial(_note_answers, answers, x)
            with torch.no_grad(), module.register_forward_hook(note, prepend=True):
                module(x)
                answer = others[name](x)
            yield _embedder_finding(label(name), answers, answer, limit)


def check_poolers(candidate: Model, *, limit: float) -> Iterator[Finding]:
    """Compare the output of a vision tower's pooler with means computed cell by cell.

    Args:
        candidate: the model to check; nothing is yielded for a model without a pooler.
        limit: SQNR in dB below which an output is wrong.
    """
    pooler = getattr(getattr(candidate.model, "vision_tower", None), "pooler", None)
    if pooler is None:
        return
    k, device = candidate.config.vision_config.pooling_kernel_size, device_of(candidate)
    wrong = []
    for columns, rows, empty in ((4, 2, 0), (2, 5, 0), (3, 2, 3)):
        states, positions = _make_picture(columns, rows, empty, k, pooler.hidden_size)
        padding = (positions == -1).all(-1)
        length = columns * rows + empty
        words = f"{columns} x {rows} cells{f' and {empty} of padding' if empty else ''}"
        try:
            with torch.no_grad():
                pooled = pooler(
                    hidden_states=states.to(device),
                    pixel_position_ids=positions.to(device),
                    padding_positions=padding.to(device),
                    output_length=length,
                )
                tokens, is_token = (part.cpu() for part in pooled)
        except RuntimeError as error:  # bins beyond the last
            wrong.append(f"{words}: {error}")
            continue
        expected = _pool_cells(states[0], positions[0], k, columns, rows)
        if int(is_token.sum()) != columns * rows:
            wrong.append(f"{words}: {int(is_token.sum())} soft tokens, expected {columns * rows}")
        elif (sqnr := _sqnr(expected, tokens[is_token])) < limit:
            wrong.append(f"{words}: soft tokens at {sqnr:.0f} dB of the means of their patches")
    severity = Severity.FAIL if wrong else Severity.PASS
    found_words = "; ".join(wrong) or "the means of k x k patches, padding left out"
    expected_words = "wide, tall and padded pictures pooled cell by cell"
    remedy = "bin = x // k + (width // k) * (y // k); patches at (-1, -1) are no token" if wrong else ""
    yield Finding("logits.pooler", severity, "vision_tower.pooler", found_words, expected_words, remedy)


def _uneven_rows(width: int) -> torch.Tensor:
    """Return random rows [16, width] of sizes from 1/64 to 128, with one large element in each."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(16, width, generator=generator)
    rows[torch.arange(16), torch.arange(16) % width] *= 8
    return rows * 2 ** torch.linspace(-6, 7, 16)[:, None]


def _normalize(x: torch.Tensor, eps: float) -> torch.Tensor:
    normed: torch.Tensor = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps).to(x.dtype)
    return normed


def _note_answers(
    answers: dict[str, torch.Tensor], x: torch.Tensor, module: Model, _: object, right: torch.Tensor
) -> None:
    """Store the outputs of the embedder and of two known faults; a hook, since streamed weights exist only then."""
    projected = module.embedding_projection(x)
    after = _normalize(projected, module.eps)
    answers |= {"right": right, "a norm after the projection": after, "no norm": projected}


def _embedder_finding(name: str, answers: Mapping[str, torch.Tensor], answer: torch.Tensor, limit: float) -> Finding:
    expected = "the norm before the projection, on rows of uneven size"
    sqnr = _sqnr(answers["right"], answer)
    if sqnr >= limit:
        return Finding("logits.embedder", Severity.PASS, name, f"the right answer ({sqnr:.0f} dB)", expected)
    near = max(answers, key=lambda kind: _sqnr(answers[kind], answer))
    kind = "" if near == "right" or _sqnr(answers[near], answer) < _SAME_FAULT_DB else f", as {near} gives"
    remedy = "RMSNorm over the tower's features, without a weight, before embedding_projection"
    words = f"another answer ({sqnr:.0f} dB){kind}"
    return Finding("logits.embedder", Severity.FAIL, name, words, expected, remedy)


def _sqnr(expected: torch.Tensor, actual: torch.Tensor) -> float:
    sums = StateSums()
    sums.add(expected.flatten(0, -2), actual.flatten(0, -2))
    return sums.metrics("").sqnr


def _make_picture(columns: int, rows: int, empty: int, k: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random states [1, p, width] of a picture's patches and their positions [1, p, 2], padding last."""
    x, y = torch.meshgrid(torch.arange(columns * k), torch.arange(rows * k), indexing="xy")
    positions = functional.pad(torch.stack([x, y], -1).reshape(-1, 2), (0, 0, 0, empty * k * k), value=-1)
    states = torch.randn(len(positions), width, generator=torch.Generator().manual_seed(columns))
    return states[None], positions[None]


def _pool_cells(states: torch.Tensor, positions: torch.Tensor, k: int, columns: int, rows: int) -> torch.Tensor:
    """Return the mean of the patches of each cell, times sqrt(width), row by row."""
    cells = [
        states[(positions // k == torch.tensor([column, row])).all(-1)].mean(0)
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(cells) * math.sqrt(states.shape[-1])
