"""`check --assistant-of`: a drafter beside its target."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from helpers import sparse
from helpers.configs import Config, copied, exit_code, good, judged, loads
from helpers.headers import planned
from helpers.program import g4convert
from helpers.released_configs import assistant, stored

from g4convert.engines.verdicts import Loads
from g4convert.errors import UsageError
from g4convert.gemma4 import Architecture
from g4convert.inspection.engines import Checked, CheckRequest, check
from g4convert.inspection.fix import fix
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.program import Program

__all__ = ["copied", "g4convert", "good"]


def drafter(directory: Path, change: Callable[[Config], object] = lambda _: None, size: str = "31B") -> Path:
    config = sparse.with_little_vocabulary(assistant(size))
    change(config)
    infos = stored(Architecture.from_config(config))
    return sparse.write(directory, config, infos.values(), {})


def paired(one: Path, target: Path) -> Checked:
    return check(CheckRequest.of(one, ["vllm"], (), target))


def test_a_drafter_fits_its_target(tmp_path: Path, good: Callable[[str], Path]) -> None:
    found = paired(drafter(tmp_path / "d"), good("31B"))
    assert found.report.levels == ("static", "engines", "assistant")
    assert exit_code(found) == 0
    assert any(one.code == "assistant.pair" and one.severity is Severity.PASS for one in found.report.findings)
    assert exit_code(paired(drafter(tmp_path / "u", size="12B"), good("12B"))) == 0


def test_a_packed_drafter_is_checked_like_the_rest(tmp_path: Path, good: Callable[[str], Path]) -> None:
    config = sparse.with_little_vocabulary(assistant("31B"))
    one = sparse.write_plan(tmp_path / "d", planned(config, assistant="pack"), config)
    found = paired(one, good("31B"))
    assert (exit_code(found), loads(found)["vllm"]) == (0, Loads.YES)
    assert fix(one) is None


def layers_all_full(config: Config) -> None:
    text = config["text_config"]
    text["layer_types"] = ["full_attention"] * text["num_hidden_layers"]
    text["global_head_dim"] = 256


@pytest.mark.parametrize(
    ("subject", "change", "severity"),
    [
        ("backbone_hidden_size", lambda config: config.update(backbone_hidden_size=2816), Severity.FAIL),
        ("vocab_size", lambda config: config["text_config"].update(vocab_size=4096), Severity.FAIL),
        ("num_centroids", lambda config: config.update(num_centroids=100), Severity.FAIL),
        ("sliding_attention", lambda config: config["text_config"].update(head_dim=128), Severity.FAIL),
        ("sliding_attention", lambda config: config["text_config"].update(num_key_value_heads=8), Severity.FAIL),
        ("full_attention", layers_all_full, Severity.FAIL),
        ("sliding_window", lambda config: config["text_config"].update(sliding_window=77), Severity.WARN),
    ],
)
def test_a_drafter_that_does_not_fit(
    subject: str,
    change: Callable[[Config], object],
    severity: Severity,
    tmp_path: Path,
    good: Callable[[str], Path],
) -> None:
    found = paired(drafter(tmp_path / "d", change), good("31B"))
    assert [one.subject for one in found.report.of(severity) if one.level == "assistant"] == [subject]
    assert exit_code(found) == (1 if severity is Severity.FAIL else 0)


def test_a_drafter_of_another_line(tmp_path: Path, good: Callable[[str], Path]) -> None:
    found = paired(drafter(tmp_path / "d", size="12B"), good("31B"))
    assert {"model_type", "backbone_hidden_size"} <= {one.subject for one in found.report.of(Severity.FAIL)}


@pytest.mark.parametrize("tokens", [{"a": 0}, None])
def test_a_drafter_of_other_tokens(tokens: dict[str, int] | None, tmp_path: Path, copied: Callable[..., Path]) -> None:
    """No engine reads its tokenizer, so it is a remark on the drafts; one that is none says nothing."""
    target, one = copied("31B"), drafter(tmp_path / "d")
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (one / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "made": "later"}))
    assert exit_code(paired(one, target)) == 0
    words = {"model": {"vocab": {"b": 0}}} if tokens else {"not": "a tokenizer"}
    (one / "tokenizer.json").write_text(json.dumps(words))
    found = paired(one, target)
    assert exit_code(found) == 0
    warned = [one.subject for one in found.report.of(Severity.WARN) if one.code == "assistant.config"]
    assert warned == (["tokenizer.json"] if tokens else [])


@pytest.mark.parametrize("text", ["{", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_tokenizer_of_a_drafter_that_cannot_be_read_stops_no_engine(
    text: str, tmp_path: Path, copied: Callable[..., Path]
) -> None:
    """VLLM 0.33 (`SpeculativeConfig`) and SGLang 0.5.23 (`TpModelWorker`) give a drafter its target's."""
    one, target = drafter(tmp_path / "d"), copied("31B")
    answers = loads(judged(one))
    (one / "tokenizer.json").write_text(text)
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    found = judged(one)
    assert loads(found) == answers
    assert [one.subject for one in found.report.of(Severity.WARN) if one.code == "static.side_files"]
    assert exit_code(paired(one, target)) == 0
    (target / "tokenizer.json").write_text(text)
    assert {loads(judged(target))[engine] for engine in ("vllm", "sglang")} == {Loads.NO}


def test_only_drafters_have_targets(tmp_path: Path, good: Callable[[str], Path]) -> None:
    one = drafter(tmp_path / "d")
    with pytest.raises(UsageError, match="no MTP assistant"):
        paired(good("31B"), good("31B"))
    with pytest.raises(UsageError, match="an MTP assistant itself"):
        paired(one, one)


def test_the_command_pairs(g4convert: Program, tmp_path: Path, good: Callable[[str], Path]) -> None:
    one = drafter(tmp_path / "d", lambda config: config.update(backbone_hidden_size=2816))
    ran = g4convert("check", one, "--assistant-of", good("31B"))
    assert ran.status == 1
    assert "fail assistant.pair backbone_hidden_size: 2816, expected 5376, as the target" in ran.out
