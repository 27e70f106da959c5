"""Outputs against what a stored reference holds of its source: sound ones pass, damages are named as ever."""

from pathlib import Path

import pytest
from conftest import Checkpoints, Packed
from helpers.damage import STATIC, damaged
from helpers.grids import two_when_quick

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Finding, Severity
from g4convert.verification.static.stored_reference import compare_described, describe_source

BAD = {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}

DAMAGES = (
    ("config key dropped", "static.config", "text_config.final_logit_softcapping"),
    ("config value changed", "static.config", "text_config.sliding_window"),
    ("architecture changed", "static.architecture", "text"),
    ("tokenizer changed", "static.side_files", "tokenizer.json"),
    ("tokenizer lost", "static.side_files", "tokenizer.json"),
    ("chat template changed", "static.side_files", "chat_template.jinja"),
    ("generation config written anew", "static.side_files", "generation_config.json"),
)


def compared(out: Path, source: Path) -> list[Finding]:
    return list(compare_described(Checkpoint.open(out), describe_source(Checkpoint.open(source))))


@pytest.mark.parametrize("family", two_when_quick(["moe", "e2b", "unified", "text", "assistant"]))
def test_a_sound_output_passes(family: str, checkpoints: Checkpoints, packed: Packed) -> None:
    found = compared(packed(family), checkpoints(family))
    assert {(one.code, one.severity) for one in found} == {
        ("static.config", Severity.PASS),
        ("static.side_files", Severity.PASS),
    }


def test_a_text_only_output_passes(checkpoints: Checkpoints, packed: Packed) -> None:
    found = compared(packed("moe", layout="text-only"), checkpoints("moe"))
    assert not [one for one in found if one.severity in BAD]


@pytest.mark.parametrize(("damage", "code", "subject"), DAMAGES, ids=[row[0] for row in DAMAGES])
def test_a_damage_is_named(  # noqa: PLR0913, PLR0917 -- a row and its fixtures
    damage: str, code: str, subject: str, dense: Path, packed: Packed, tmp_path: Path
) -> None:
    found = compared(damaged(packed("dense"), tmp_path / "out", STATIC[damage]), dense)
    assert any(one.code == code and one.subject.startswith(subject) for one in found if one.severity is Severity.FAIL)


def test_a_file_that_engines_read_is_told_if_it_was_added(dense: Path, packed: Packed, tmp_path: Path) -> None:
    out = damaged(
        packed("dense"), tmp_path / "out", lambda path: (path / "added_tokens.json").write_text("{}") and None
    )
    (told,) = (one for one in compared(out, dense) if one.severity in BAD)
    assert (told.severity, told.subject) == (Severity.WARN, "added_tokens.json")


def test_a_reference_of_before_says_that_nothing_was_compared(packed: Packed) -> None:
    found = list(compare_described(Checkpoint.open(packed("dense")), {"source": "0"}))
    assert [(one.code, one.severity) for one in found] == [
        ("static.config", Severity.INFO),
        ("static.side_files", Severity.INFO),
    ]
    assert all("not compared" in one.found for one in found)
