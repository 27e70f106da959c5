"""Words that are stored in another dtype than int32: vLLM and SGLang copy their values, transformers refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from helpers.rewriting import Tensors, rewritten

from g4convert.engines.verdicts import Loads
from g4convert.forward.models import model_class, quiet_transformers
from g4convert.inspection.engines import CheckRequest, check
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Packed

ENGINES: Mapping[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "int64": (lambda words: words.long(), True),
    "uint32": (lambda words: words.view(torch.uint32), True),
    "bytes": (lambda words: words.view(torch.uint8), False),
    "two words in one": (lambda words: words.view(torch.int64), False),
}
"""Dtype of the words, and whether an engine's `copy_` into int32 [n, k/8] gives the same words."""


@pytest.fixture(params=ENGINES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(packed: Path, out: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    def words(tensors: Tensors) -> Tensors:
        return {name: change(one) if name.endswith("weight_packed") else one for name, one in tensors.items()}

    return rewritten(packed, out, words)


def test_verdicts_follow_the_loaders(case: str, packed: Packed, tmp_path: Path) -> None:
    change, copied = ENGINES[case]
    found = check(CheckRequest(stored(packed("dense"), tmp_path / "out", change), tps=(1,)))
    loads = {one.engine: one.loads is not Loads.NO for one in found.verdicts}
    assert loads == {"transformers": False, "vllm": copied, "sglang": copied}
    remedies = {one.remedy for one in found.report.of(Severity.FAIL) if one.code == "static.packed"}
    assert ("store it as int32, with the same values" in remedies) is copied


def test_a_copy_into_int32_gives_the_words(case: str) -> None:
    change, copied = ENGINES[case]
    words = torch.randint(-(2**31), 2**31 - 1, (8, 16), dtype=torch.int64).int()
    other = change(words)
    assert (other.shape == words.shape) is copied
    if copied:
        assert torch.equal(torch.empty_like(words).copy_(other), words)


def test_transformers_does_not_unpack_them(packed: Packed, tmp_path: Path) -> None:
    out = stored(packed("dense"), tmp_path / "out", lambda words: words.long())
    with quiet_transformers(), pytest.raises(ValueError, match=r"Expected torch\.int32 but got torch\.int64"):
        model_class("gemma4").from_pretrained(out, dtype=torch.bfloat16)(input_ids=torch.tensor([[2, 5]]))


def test_the_remedy_works(packed: Packed, tmp_path: Path) -> None:
    out = stored(packed("dense"), tmp_path / "out", lambda words: words.long())
    mended = stored(out, tmp_path / "mended", lambda words: words.int())
    assert {one.loads for one in check(CheckRequest(mended, tps=(1,))).verdicts} == {Loads.YES}
