"""A text-only output against its multimodal original: every level, a live and a stored reference."""

from pathlib import Path

import pytest
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.grids import one_in
from helpers.program import brief

from g4convert.checkpoint.uses import original
from g4convert.progress import Progress
from g4convert.report import Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.logits.level import store_reference
from g4convert.verification.run import verify

__all__ = ["brief"]  # a fixture


def media(report: Report) -> list[str]:
    return [one.found for one in report.findings if one.code == "logits.media"]


def parity_holds(report: Report) -> bool:
    """Return True if all is in order but the price of four bits, which random weights pay dearly."""
    bad = [one for one in report.findings if one.severity is Severity.FAIL and "logits.loss" not in one.code]
    return not bad and any("parity" in one.code for one in report.findings)


@pytest.mark.usefixtures("brief")
@pytest.mark.wide
@pytest.mark.parametrize("layout", ["full", "text-only"])
def test_a_unified_decoder_under_either_class_against_its_source(
    layout: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source, out = checkpoints("unified_text"), tmp_path / "out"
    quantized(source, out, layout=layout)
    assert parity_holds(verify(Request(out, source, Level.LOGITS)))


@pytest.mark.usefixtures("brief")
@pytest.mark.wide
@pytest.mark.parametrize("family", one_in(4, ["unified", "e2b", "moe", "dense"]))
def test_a_text_only_output_against_its_multimodal_original(
    family: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source, out, stored = checkpoints(family), tmp_path / "out", tmp_path / "reference.safetensors"
    quantized(source, out, layout="text-only")
    live = verify(Request(out, source, Level.LOGITS))
    assert parity_holds(live)
    assert media(live) == ["none: the checkpoint is the text model alone"]
    store_reference(original(source), stored, Request(source, dtype="float32"), progress=Progress())
    later = verify(Request(out, stored, Level.LOGITS))
    assert parity_holds(later)
    (found,) = media(later)
    assert found.endswith("left out: the checkpoint is the text model alone")
    assert not found.startswith("0 ")
