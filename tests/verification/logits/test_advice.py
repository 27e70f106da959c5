"""Advice where four bits cost too much: what costs less, how large it is, and whether it should pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Finding, Severity
from g4convert.verification import profiles
from g4convert.verification.logits.advice import (
    BetterRecipe,
    add_advice,
    better_recipes,
    is_right,
    measured_on,
)
from g4convert.verification.logits.earlier import blame_fault, judge_file

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints, Packed

FAIL, WARN, PASS = Severity.FAIL, Severity.WARN, Severity.PASS
WAYS = (
    BetterRecipe(
        "-r w8a16-g32", "8 bits", 0.0003, 0.0004, limit=0.05, passes=True, fails=False, nbytes=1_500_000, name="W8A16"
    ),
)
ROLES = [{"module": name, "kind": "role", "share": share} for name, share in (("mlp", 0.6), ("attention", -0.1))]


def finding(code: str, severity: Severity) -> Finding:
    return Finding(f"logits.{code}", severity, "all predictions", "", "")


def metrics(kl: float, high: float | None = None) -> dict[str, Any]:
    return {"loss": {"kl_mean": kl, "kl_high": high or kl}, "blame": {"loss": {"rows": ROLES}}}


@pytest.fixture
def made(packed: Packed, text: Path) -> tuple[Checkpoint, Checkpoint]:
    return Checkpoint.open(packed("text")), Checkpoint.open(text)


def test_the_worst_findings_of_a_loss_name_what_costs_less() -> None:
    def remedies(*findings: Finding) -> dict[str, str]:
        return {one.code: one.remedy for one in add_advice(findings, WAYS, high=0.38, model="M") if one.remedy}

    found = remedies(finding("loss.kl_mean", FAIL), finding("loss.kl_p999", WARN), finding("parity.kl_mean", PASS))
    assert list(found) == ["logits.loss.kl_mean"]
    right, way, fit = found["logits.loss.kl_mean"].splitlines()
    assert right.startswith("the file is correct, but this recipe loses too much")
    assert right.endswith(
        "to expect (0.38 here, times the ratio of the two recipes on M); `should pass` looks at this KL alone:"
    )
    assert way == "`-r w8a16-g32`: 8 bits, 1.50 MB, KL at most about 0.0004, should pass"
    assert "g4convert fit" in fit
    assert list(remedies(finding("loss.kl_p999", WARN))) == ["logits.loss.kl_p999"]


def test_a_file_is_called_correct_only_if_all_of_it_was_compared() -> None:
    passed = Finding("static.config", PASS, "config.json", "every key of the source is there, unchanged", "")
    added = Finding("static.config", Severity.INFO, "text_config.quirk", "1", "not in the source")
    assert judge_file([passed], compared=True) == "the file is correct, but this recipe loses too much."
    assert "keys that the source lacks (text_config.quirk); if" in judge_file([passed, added], compared=True)
    assert "a stored reference holds no weights" in judge_file([passed], compared=False)


def test_a_loss_beside_a_fault_is_not_the_recipes() -> None:
    fault = Finding("static.config", FAIL, "text_config.rope_parameters.factor", "8.0, added", "")
    lost, well = blame_fault([finding("loss.kl_mean", FAIL), finding("loss.top1", PASS)], [fault])
    assert lost.remedy == "correct first what static.config names: text_config.rope_parameters.factor"
    assert not well.remedy


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ((), "0.38 here"),
        (("8 bits",), "0.38 here, times the ratio of the two recipes on M"),
        (("mlp kept in bf16",), "0.38 here, less the kept part's share"),
        (
            ("8 bits", "mlp kept in bf16"),
            "0.38 here, times the ratio of the two recipes on M or less the kept part's share",
        ),
    ],
)
def test_the_remedy_says_how_each_figure_is_estimated(options: tuple[str, ...], how: str) -> None:
    found = [replace(WAYS[0], what=what) for what in options]
    (one,) = add_advice([finding("loss.kl_mean", FAIL)], found, high=0.38, model="M")
    assert f"({how});" in one.remedy


def test_what_should_pass_comes_first_and_then_the_smaller(made: tuple[Checkpoint, Checkpoint]) -> None:
    """Auto left 0.30 nats of a real model, gptq 0.053: of 0.12 it would leave 0.021, of 0.6 more than the 0.05."""
    little, much = (
        [(one.options, one.passes) for one in better_recipes(*made, metrics(kl), profiles.load("w4a16"))]
        for kl in (0.12, 0.6)
    )
    gptq = "-r w4a16-g32-gptq"
    assert little[0] == (gptq, True)
    assert {("--pack attention", True), ("-r w8a16-g32", True)} == {*little[1:3]}
    assert "-r w4a16-g32-best" not in dict(little)  # takes four times as long, for 2 % less
    assert much[0] == ("-r w8a16-g32", True)
    assert (gptq, False) in much[1:]
    (kept,) = (
        one for one in better_recipes(*made, metrics(0.2), profiles.load("w4a16")) if one.options == "--pack attention"
    )
    assert (kept.what, kept.name, kept.expected) == (
        "mlp kept in bf16",
        "W4A16-attention",
        "should pass with a warning",
    )
    assert kept.kl == pytest.approx(0.08)


def test_losses_of_two_models_are_not_mixed(packed: Packed) -> None:
    """Groups of 128 were measured without experts alone: there 4 bits left 0.628, and in groups of 32 0.301."""
    out = Checkpoint.open(packed("moe", group_size=128, pack=("attention",)))
    (eight,) = (
        one
        for one in better_recipes(out, None, metrics(0.628), profiles.load("w4a16"))
        if one.options == "-r w8a16-g32"
    )
    assert eight.kl == pytest.approx(0.301 / 4**4)
    assert measured_on(out) == "Gemma 3 270M"


def test_the_upper_end_of_the_interval_decides(made: tuple[Checkpoint, Checkpoint]) -> None:
    for high, passes in ((0.2, True), (0.4, False)):
        found = better_recipes(*made, metrics(0.2, high), profiles.load("w4a16"))
        assert next(one.passes for one in found if one.options == "-r w4a16-g32-gptq") is passes


def test_sizes_need_the_original(made: tuple[Checkpoint, Checkpoint]) -> None:
    out, source = made
    assert all(one.nbytes for one in better_recipes(out, source, metrics(0.2), profiles.load("w4a16")))
    bare = better_recipes(out, None, metrics(0.2), profiles.load("w4a16"))
    assert {one.nbytes for one in bare} == {None}
    assert "`-r w8a16-g32`: 8 bits, KL at most about 0.00078, should pass" in [one.line for one in bare]


def test_a_drafter_is_advised_to_be_packed_and_not_to_be_calibrated(packed: Packed, checkpoints: Checkpoints) -> None:
    """A recipe keeps drafters by default: `-r w8a16-g32` alone would copy it, and pass."""
    source, out = checkpoints("assistant"), packed("assistant", assistant="pack")
    found = better_recipes(Checkpoint.open(out), Checkpoint.open(source), metrics(0.2), profiles.load("w4a16"))
    assert {way.options for way in found} == {"-r w8a16-g32 --assistant pack", "--pack attention --assistant pack"}
    eight = next(way for way in found if way.what == "8 bits")
    assert eight.nbytes
    assert eight.nbytes < sum(file.stat().st_size for file in source.glob("*.safetensors"))
    (told,) = add_advice([finding("loss.kl_mean", FAIL)], found, high=0.2, model="M", drafts=True)
    assert "g4convert fit" not in told.remedy


def test_other_options_stay(packed: Packed) -> None:
    out = Checkpoint.open(packed("text", layout="text-only", max_shard_size="1MB"))
    options = {way.options for way in better_recipes(out, None, metrics(0.2), profiles.load("w4a16"))}
    rest = "--layout text-only --max-shard-size 1MB"
    assert {f"-r w8a16-g32 {rest}", f"-r w4a16-g32-gptq {rest}"} <= options


def test_nothing_is_advised_beside_a_fault_or_without_a_path() -> None:
    lost, right = finding("loss.kl_mean", FAIL), finding("parity.kl_mean", PASS)
    assert is_right([lost, right])
    assert not is_right([lost, finding("parity.kl_mean", FAIL)])
    assert not is_right([lost, right, finding("decode", FAIL)])
    assert not is_right([lost])
