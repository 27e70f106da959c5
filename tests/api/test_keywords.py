"""Errors of the Python functions keep the text of the commands; a note says what its options are in Python."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Unpack

import pytest
from helpers.program import Program, g4convert

from g4convert import calibrate, fit, plan, quantize
from g4convert.api.keywords import add_keyword_notes
from g4convert.errors import G4Error, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from g4convert.api.recipes import Overrides


__all__ = ["g4convert"]  # a fixture


def noted(message: str, hint: str = "", offenders: Sequence[str] = ()) -> list[str]:
    """Return the notes of an error with this text, raised by a function like `quantize`."""

    def call(  # noqa: PLR0913 -- as many kinds of keywords as there are
        output: Path | None = None,
        *,
        recipe: str = "",
        tp: int = 1,
        engine_timeout: float | None = None,
        answers: bool | None = None,
        overwrite: bool = False,
        **overrides: Unpack[Overrides],
    ) -> None:
        del output, recipe, tp, engine_timeout, answers, overwrite, overrides
        raise UsageError(message, hint=hint, offenders=offenders)

    with pytest.raises(UsageError) as refused:
        add_keyword_notes(call)()
    assert (refused.value.message, refused.value.hint) == (message, hint)
    assert refused.value.offenders == tuple(offenders)
    return getattr(refused.value, "__notes__", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--engine-timeout 0.5: expected 1 to 604,800", "--engine-timeout is engine_timeout"),
        ("--engine vlm: not one of vllm, sglang", "--engine is engines"),
        ("decoder weights under a config.json: --layout text-only converts them", "--layout is layout"),
        ("--pack attention --pack mlp: each once", "--pack is pack"),
        ("`--bits mlp=8` or (--carry FILE)", "--bits is bits, --carry is carry"),
        ("--no-answers, or --overwrite starts again", "--no-answers is answers=False, --overwrite is overwrite=True"),
        ("give -o another directory, or -r qat-q4_0", "-o is output, -r is recipe"),
        ("`g4convert quantize MODEL -o OUT` makes one; --tp 2 does not", "--tp is tp"),
        ("`llama-imatrix -m MODEL.gguf -f TEXT.txt -o FILE.gguf` makes one", ""),
        ("python -m sglang.launch_server --model-path OUT, then --tp 2", "--tp is tp"),
        ("`pack` and a-r, x--tp, --fix and -- are none", ""),
    ],
)
def test_options_are_named_in_a_note(text: str, said: str) -> None:
    assert noted(text) == ([f"in Python: {said}"] if said else [])


def test_one_note_names_each_option_of_the_whole_error_once() -> None:
    found = noted("--tp 2: wrong", "--overwrite, or another --tp", ["--layout full"])
    assert found == ["in Python: --tp is tp, --layout is layout, --overwrite is overwrite=True"]


def test_a_traceback_ends_with_the_note(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    with pytest.raises(UsageError) as refused:
        quantize(moe, tmp_path / "out", tp=[2])
    shown = "".join(traceback.format_exception_only(refused.value)).splitlines()
    assert shown[-1] == "in Python: --tp is tp, --engine is engines"
    printed = g4convert("quantize", moe, "-o", tmp_path / "out", "--tp", "2").err.splitlines()
    assert printed == [f"error: {refused.value.message}", f"hint: {refused.value.hint}"]


def test_what_a_function_takes_under_another_name(moe: Path, tmp_path: Path) -> None:
    for call, said in (
        (lambda: fit(moe, tmp_path / "a.yaml", target_bits=4.5, choices=["3:32"]), "--choice is choices"),
        (lambda: calibrate(moe, tmp_path / "a.pt"), "-o is output"),
    ):
        with pytest.raises(G4Error) as refused:
            call()
        assert refused.value.__notes__ == [f"in Python: {said}"]


def test_a_keyword_without_an_option_is_called_a_keyword() -> None:
    with pytest.raises(UsageError) as refused:
        plan("nowhere", rules=[{"layer": "3", "bits": 8}])
    (line,) = refused.value.offenders
    assert line.startswith("rules.0.layer: '3' (keyword rules): no key of a rule: ")


def test_a_function_keeps_its_name() -> None:
    assert quantize.__name__ == "quantize"
