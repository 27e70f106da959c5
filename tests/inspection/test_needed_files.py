"""Checkpoints without a tokenizer, a processor or a chat template: which engines start, and with which option."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from helpers.checked import dense_out
from helpers.clean import same
from helpers.configs import exit_code, judged, loads
from helpers.conversions import quantized
from helpers.program import g4convert
from helpers.rewriting import rewritten
from transformers import AutoProcessor, AutoTokenizer

from g4convert.engines.verdicts import Loads
from g4convert.report import Severity

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints
    from helpers.program import Program

__all__ = ["dense_out", "g4convert"]

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PROCESSOR = ("processor_config.json",)
TEMPLATE = ("chat_template.jinja",)
NO, YES, CAVEAT = Loads.NO, Loads.YES, Loads.CAVEAT


def lacking(source: Path, directory: Path, *names: str) -> Path:
    rewritten(source, directory, same)
    for name in names:
        (directory / name).unlink()
    return directory


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (TEMPLATE, (YES, YES, YES)),
        (TOKENIZER, (YES, NO, NO)),
        (TOKENIZER[:1], (YES, NO, NO)),
        (TOKENIZER[1:], (YES, YES, YES)),
        (PROCESSOR, (YES, CAVEAT, NO)),
        ((*TOKENIZER, *PROCESSOR, *TEMPLATE), (YES, NO, NO)),
    ],
)
def test_engines_need_files_beside_the_weights(
    gone: tuple[str, ...], expected: tuple[Loads, ...], dense_out: Path, tmp_path: Path
) -> None:
    found = judged(lacking(dense_out, tmp_path / "out", *gone), tps=(1,))
    assert loads(found) == dict(zip(("transformers", "vllm", "sglang"), expected, strict=True))
    assert exit_code(found) == (1 if expected[1] is NO else 0)
    told = [one for one in found.report.findings if one.code == "engines.files"]
    assert bool(told) == (gone != TOKENIZER[1:])
    assert all(" from the model that this one was made from" in one.remedy for one in told)
    assert {one.severity for one in told} <= {Severity.FAIL, Severity.WARN, Severity.INFO}


def test_what_transformers_makes_of_them(dense_out: Path, tmp_path: Path) -> None:
    """VLLM and SGLang take tokenizer and processor from transformers."""
    with pytest.raises(ValueError, match="backend tokenizer"):
        AutoTokenizer.from_pretrained(lacking(dense_out, tmp_path / "words", *TOKENIZER))
    found = AutoTokenizer.from_pretrained(lacking(dense_out, tmp_path / "vocabulary", *TOKENIZER[:1]))
    assert {*found("The sky is blue").input_ids} == {found.unk_token_id}
    with pytest.raises(OSError, match="Can't load"):
        AutoProcessor.from_pretrained(lacking(dense_out, tmp_path / "media", *PROCESSOR))
    assert AutoTokenizer.from_pretrained(lacking(dense_out, tmp_path / "chat", *TEMPLATE)).chat_template is None


def test_an_engine_that_is_named_must_start(dense_out: Path, tmp_path: Path) -> None:
    words = lacking(dense_out, tmp_path / "words", *TOKENIZER)
    media = lacking(dense_out, tmp_path / "media", *PROCESSOR)
    codes = {"transformers": (0, 0), "vllm": (1, 0), "sglang": (1, 1)}
    assert {one: (exit_code(judged(words, one)), exit_code(judged(media, one))) for one in codes} == codes


def test_a_decoder_needs_no_processor(text: Path, dense: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    quantized(text, tmp_path / "text")
    quantized(dense, tmp_path / "decoder", layout="text-only", leave=["processor_config.json"])
    drafter = lacking(checkpoints("assistant"), tmp_path / "drafter", *TOKENIZER, *TEMPLATE)
    for directory in (tmp_path / "text", tmp_path / "decoder", drafter):
        assert not (directory / "processor_config.json").exists()
        assert not [one for one in judged(directory).report.findings if one.code == "engines.files"]


def test_the_command_that_serves_has_the_option(g4convert: Program, dense_out: Path, tmp_path: Path) -> None:
    words = g4convert("check", lacking(dense_out, tmp_path / "words", *TOKENIZER))
    assert (words.status, "next:" in words.out) == (1, False)
    media = g4convert("check", lacking(dense_out, tmp_path / "media", *PROCESSOR))
    assert media.status == 0
    assert re.search(r"^then, if it passes: vllm serve \S+ --language-model-only$", media.out, re.MULTILINE)
    chat = g4convert("check", lacking(dense_out, tmp_path / "chat", *TEMPLATE))
    assert (chat.status, "info engines.files chat_template.jinja: no chat template" in chat.out) == (0, True)
