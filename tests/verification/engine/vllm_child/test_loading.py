"""Parameters that no tensor reached, found by the pattern that is left in them."""

from __future__ import annotations

import pytest
import torch

from g4convert.verification.engine.vllm_child.loading import PATTERNS, poison, unfilled_tensors, watched_tensors


@pytest.mark.parametrize("dtype", PATTERNS)
def test_any_part_that_is_left_is_seen(dtype: torch.dtype) -> None:
    module = torch.nn.Module()
    module.register_parameter("a", torch.nn.Parameter(torch.zeros(8, 16).to(dtype), requires_grad=False))
    module.register_buffer("b", torch.zeros(8, 16).to(dtype))
    tensors = watched_tensors(module)
    assert tensors.keys() == {"a", "b"}
    assert poison(tensors) == 0
    tensors["a"].fill_(1)
    tensors["b"][1:].fill_(1)
    assert unfilled_tensors(tensors) == [{"name": "b", "share": 1 / 8}]


def test_a_dtype_without_a_pattern_is_counted() -> None:
    values = {"flag": torch.zeros(2, dtype=torch.bool), "word": torch.zeros(2, dtype=torch.int64)}
    assert poison(values) == 1
    assert unfilled_tensors(values) == [{"name": "word", "share": 1.0}]


def test_a_checkpoint_may_hold_nan_and_any_word() -> None:
    """Only the very pattern counts, and of words more than chance gives."""
    values = {"nan": torch.full((4,), torch.nan), "word": torch.arange(100, dtype=torch.int32)}
    values["word"][3] = PATTERNS[torch.int32][1]
    assert unfilled_tensors(values) == []


def test_caches_and_what_is_computed_are_not_looked_at() -> None:
    module = torch.nn.Module()
    module.kv_cache = []
    module.register_buffer("k_scale", torch.ones(1))
    outer = torch.nn.Module()
    outer.add_module("attention", module)
    outer.register_buffer("rotary", torch.ones(4), persistent=False)
    assert watched_tensors(outer) == {}
