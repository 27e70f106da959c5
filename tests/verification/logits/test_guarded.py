"""Level logits of an output whose config makes a model that cannot run: it stops, and the cause is reported."""

from pathlib import Path

import pytest
from conftest import Checkpoints
from helpers.damage import STATIC, damaged
from helpers.faults import Written, failures, written
from helpers.grids import two_when_quick
from helpers.program import brief

from g4convert.checkpoint.uses import original
from g4convert.progress import Progress
from g4convert.report import Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.logits import guarded
from g4convert.verification.logits.level import store_reference
from g4convert.verification.run import verify

__all__ = ["brief", "written"]  # fixtures

ROWS = (
    ("padding token lost", "dense", "text_config.pad_token_id", "parity"),
    ("image token of another model", "unified", "image_token_id", "parity"),
    ("image token of another model", "dense", "image_token_id", "parity"),
    ("video token of another model", "dense", "video_token_id", "w4a16"),
    ("sound token of another model", "e2b", "audio_token_id", "parity"),
    ("pooling of another size", "dense", "vision_config.pooling_kernel_size", "w4a16"),
    ("one layer of another window", "dense", "text_config.per_layer_config.0.sliding_window", "parity"),
)


def why_stopped(report: Report) -> tuple[str, str]:
    (stopped,) = [one for one in report.findings if one.code == "logits.stopped"]
    assert stopped.severity is Severity.INCONCLUSIVE
    assert "chat template" not in stopped.told
    return stopped.found, stopped.remedy


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("row", two_when_quick([(row,) for row in ROWS]), ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_model_that_cannot_run_stops_the_level_and_the_key_is_named(
    row: tuple[str, str, str, str], written: Written, tmp_path: Path
) -> None:
    damage, family, key, profile = row
    source, good = written(family)
    out = damaged(good, tmp_path / "out", STATIC[damage])
    found = verify(Request(out, source, Level.LOGITS, profile=profile))
    assert found.exit_code(strict=False) == 1
    assert found.levels == (Level.STATIC, Level.WEIGHTS)
    assert any(key in subjects for subjects in failures(found.findings).values())
    text, remedy = why_stopped(found)
    assert text.startswith("not run: ")
    assert remedy == f"correct config.json first: level static names {key}"


@pytest.mark.usefixtures("brief")
@pytest.mark.wide
def test_a_stored_reference_that_the_model_fails_on_is_no_fault_of_g4convert(
    written: Written, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source, good = written("dense")
    stored = tmp_path / "reference.safetensors"
    store_reference(original(checkpoints("dense")), stored, Request(source, dtype="float32"), progress=Progress())
    out = damaged(good, tmp_path / "out", STATIC["image token of another model"])
    found = verify(Request(out, stored, Level.LOGITS))
    assert found.verdict in {Severity.INCONCLUSIVE, Severity.FAIL}
    text, remedy = why_stopped(found)
    assert "tokens" in text
    assert "config.json" in remedy


def test_a_failure_of_a_model_that_is_right_is_raised(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("of g4convert")

    monkeypatch.setattr(guarded, "run_logits", fail)
    source, out = written("dense")
    with pytest.raises(ValueError, match="of g4convert"):
        verify(Request(out, source, Level.LOGITS))
