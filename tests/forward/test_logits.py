"""Logits that several models make together: the bits of each alone, and one cast of what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from g4convert.forward import logits
from g4convert.forward.logits import Head, HeadLogits, Page, compute_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

WIDTH, HIDDEN, ROWS = 300, 16, 5


def made(weight: torch.Tensor, *, cap: float | None = None, dtype: torch.dtype = torch.float32) -> HeadLogits:
    module = torch.nn.Linear(HIDDEN, len(weight), bias=False)
    head = Head(module, weight, cap, torch.device("cpu"))
    return HeadLogits(head, torch.randn(ROWS, HIDDEN).to(dtype))


def test_each_has_the_bits_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_BLOCK", 64 * HIDDEN)  # five blocks, the last a short one
    monkeypatch.setattr(logits, "_CACHED", 48 * HIDDEN)
    shared, other = torch.randn(WIDTH, HIDDEN).bfloat16(), torch.randn(WIDTH, HIDDEN)
    models = {
        "original": made(shared),
        "dequantized": made(shared, cap=30.0),
        "half": made(shared, dtype=torch.bfloat16),
        "another head": made(other),
    }
    pages = {name: Page() for name in models}
    together = compute_together(models, 1, 4, pages)
    for name, one in models.items():
        alone = one.rows(1, 4)
        assert all(torch.equal(found, wanted) for found, wanted in zip(together[name], alone, strict=True)), name


def test_a_head_that_several_share_is_cast_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, other = torch.randn(WIDTH, HIDDEN).bfloat16(), torch.randn(WIDTH, HIDDEN).bfloat16()
    models = {"original": made(shared), "packed": made(shared), "another head": made(other)}
    casts: list[int] = []
    multiply = logits._multiply  # noqa: SLF001 -- counted, and called

    def counted(weight: torch.Tensor, given: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        casts.append(weight.data_ptr())
        multiply(weight, given)

    monkeypatch.setattr(logits, "_multiply", counted)
    compute_together(models, 0, ROWS, {name: Page() for name in models})
    assert casts == [shared.data_ptr(), other.data_ptr()]


def test_several_probes_have_the_bits_that_comparing_them_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "PIECE", 4 * WIDTH)
    parts = [made(torch.randn(WIDTH, HIDDEN), cap=30.0)] * 2
    found = logits.concatenate_logits(parts)
    together = logits.join_logits(parts)[0]
    wanted = [together.rows(begin, end)[0].clone() for begin, end in logits.pieces(2 * ROWS, WIDTH)]
    assert torch.equal(found, torch.cat(wanted))


def test_equal_states_are_multiplied_once() -> None:
    shared = torch.randn(WIDTH, HIDDEN).bfloat16()
    one, capped = made(shared), made(shared, cap=30.0)
    packed = HeadLogits(one.head, one.states.clone())
    models = {"dequantized": one, "packed": packed, "capped": HeadLogits(capped.head, one.states.clone())}
    found = compute_together(models, 0, ROWS, {name: Page() for name in models})
    assert found["packed"][0] is found["dequantized"][0]
    assert not torch.equal(found["capped"][0], found["dequantized"][0])
    packed.states[2, 3] += 1
    again = compute_together(models, 0, ROWS, {name: Page() for name in models})
    assert torch.equal(again["packed"][0], packed.rows(0, ROWS)[0])
