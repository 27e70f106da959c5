"""Outputs held against the conversion of the clean source."""

from pathlib import Path

from g4convert.report import Severity
from g4convert.request import Level, Request
from g4convert.verification.run import verify
from helpers.rewriting import Tensors

CLASSES = {
    "moe": "Gemma4ForConditionalGeneration",
    "unified": "Gemma4UnifiedForConditionalGeneration",
    "text": "Gemma4ForCausalLM",
    "unified_text": "Gemma4UnifiedForCausalLM",
}


def same(tensors: Tensors) -> Tensors:
    return tensors


def assert_verified(output: Path, source: Path) -> None:
    report = verify(Request(output, source, Level.WEIGHTS))
    assert not report.of(Severity.FAIL)
    assert not report.of(Severity.WARN)
