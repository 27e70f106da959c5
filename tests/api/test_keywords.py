"""Errors of the Python functions name their keywords."""

from __future__ import annotations

import pytest

from g4convert.api.keywords import keyworded, with_keywords
from g4convert.errors import UsageError

NAMES = {"answers", "bits", "device", "engine_timeout", "engines", "output", "overwrite", "prompts", "recipe", "tp"}
FLAGS = {"answers", "overwrite"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--engine-timeout 0.5: expected 1 to 604,800", "engine_timeout=0.5: expected 1 to 604,800"),
        ("--engine vlm: not one of vllm, sglang", "engines=vlm: not one of vllm, sglang"),
        ("--engine-timeout gives it more", "engine_timeout gives it more"),
        ("--tp: no engine", "tp: no engine"),
        ("--device cpu computes the same, only slower", "device=cpu computes the same, only slower"),
        ("--overwrite starts again; --no-answers", "overwrite=True starts again; answers=False"),
        ("give -o another directory, or -r qat-q4_0", "give output another directory, or recipe=qat-q4_0"),
        ("leave --prompts out, or `--bits mlp=8`", "leave prompts out, or `bits={'mlp': 8}`"),
        ("`g4convert quantize MODEL -o OUT` makes one; --tp 2", "`g4convert quantize MODEL -o OUT` makes one; tp=2"),
        ("g4convert check OUT --tp 2, where OUT is --tp 2", "g4convert check OUT --tp 2, where OUT is tp=2"),
        ("--tensor-parallel-size 2", "--tensor-parallel-size 2"),
    ],
)
def test_options_become_keywords(text: str, wanted: str) -> None:
    assert with_keywords(text, NAMES, FLAGS) == wanted


def test_every_part_of_an_error_has_keywords() -> None:
    def call(*, tp: int = 1, overwrite: bool = False) -> None:
        raise UsageError(f"--tp {tp}: wrong", offenders=["--tp 3"], hint=f"--overwrite {overwrite}")

    with pytest.raises(UsageError) as refused:
        keyworded(call)(tp=2)
    assert str(refused.value) == "tp=2: wrong\n  tp=3\nhint: overwrite=True False"
    assert keyworded(call).__name__ == "call"
