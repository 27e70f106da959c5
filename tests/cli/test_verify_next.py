"""`quantize --verify`, and what a verification says to do next."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from helpers.damage import STATIC, VALUES, damaged, lose
from helpers.program import Program, brief, g4convert
from helpers.verified import prompts, text_out

from g4convert.cli import show_report
from g4convert.cli.next_steps import requantize_command
from g4convert.report import Finding, Report, Severity

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["brief", "g4convert", "prompts", "text_out"]  # fixtures


def test_a_warning_at_the_end_of_a_conversion_says_why(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it must be quiet: the reason is not to be looked for."""
    from g4convert.verification import run  # noqa: PLC0415 -- brings torch

    warning = Finding("static.config", Severity.WARN, "rope", "odd", "even", "look at it")
    passed = Finding("static.files", Severity.PASS, "files", "there", "")
    monkeypatch.setattr(run, "check_static", lambda *_: [passed, warning])
    for number, manner in enumerate(((), ("-q",))):
        ran = g4convert("quantize", text, "-o", tmp_path / str(number), "--verify", "static", *manner)
        assert ran.status == 0
        assert "warn static.config rope: odd, expected even" in ran.out
        assert "look at it" in ran.out


def test_quantize_verifies_at_its_end(text: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", text, "-o", tmp_path / "a")
    assert ran.status == 0
    assert f"PASS {tmp_path / 'a'} against {text}: static, weights" in ran.out
    for level, levels in (("none", None), ("static", ["static"]), ("weights", ["static", "weights"])):
        ran = g4convert("quantize", text, "-o", tmp_path / level, "--verify", level, "--json", "-q")
        found = json.loads(ran.out)
        assert (ran.status, ran.err) == (0, "")
        assert (found["verify"]["levels"] if levels else found.get("verify")) == levels
    assert g4convert("quantize", text, "-o", tmp_path / "b", "--verify", "some").status == 2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("manner", ["--json", "-q", "--no-color"])
def test_quantize_that_does_not_verify_exits_1_and_keeps_the_output(
    manner: str, text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4convert.conversion import run as convert  # noqa: PLC0415 -- brings numba

    finish = convert._finish  # noqa: SLF001 -- a writer with a fault

    def finish_badly(*arguments: object) -> None:
        finish(*arguments)  # type: ignore[arg-type] # handed on
        VALUES["gate and up swapped"].damage(tmp_path / "out")

    monkeypatch.setattr("helpers.damage.LAYER", "model.layers.0")
    monkeypatch.setattr(convert, "_finish", finish_badly)
    ran = g4convert("quantize", text, "-o", tmp_path / "out", manner)
    assert ran.status == 1
    assert "does not verify" in ran.err
    assert "the output is kept" in ran.err
    assert (tmp_path / "out" / "config.json").exists()
    told = ran.out if manner != "--json" else json.dumps(json.loads(ran.out)["verify"])
    assert "model.layers.0.mlp.gate_proj" in told


@pytest.mark.usefixtures("brief")
def test_a_reference_that_came_meanwhile_stays(
    text: Path, prompts: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4convert.verification.logits import capture  # noqa: PLC0415 -- brings torch

    stored, run_all = tmp_path / "ref.safetensors", capture.run_all

    def run(*given: Any) -> Any:  # noqa: ANN401 -- whatever it is given
        stored.write_text("precious")
        return run_all(*given)

    monkeypatch.setattr(capture, "run_all", run)
    command = ("reference", text, "-o", stored, "--prompts", prompts, "-q")
    ran = g4convert(*command)
    assert (ran.status, stored.read_text()) == (2, "precious")
    assert "is there already" in ran.err
    assert "--overwrite" in ran.err
    assert g4convert(*command, "--overwrite").status == 0


@pytest.mark.usefixtures("brief")
def test_a_model_replaced_while_it_answers_is_no_reference(
    text: Path, prompts: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4convert.verification.logits import capture  # noqa: PLC0415 -- brings torch

    source, run_all = shutil.copytree(text, tmp_path / "source"), capture.run_all
    file = min(source.glob("*.safetensors"))

    def run(*given: Any) -> Any:  # noqa: ANN401 -- whatever it is given
        shutil.copy2(file, tmp_path / "fresh")  # also of the same time
        (tmp_path / "fresh").rename(file)
        return run_all(*given)

    monkeypatch.setattr(capture, "run_all", run)
    ran = g4convert("reference", source, "-o", tmp_path / "ref.safetensors", "--prompts", prompts, "-q")
    assert ran.status == 3
    assert f"{source}: changed while it was read" in ran.err
    assert file.name in ran.err
    assert not (tmp_path / "ref.safetensors").exists()


@pytest.mark.usefixtures("brief")
def test_the_next_step_is_said(text_out: tuple[Path, Path], prompts: Path, g4convert: Program, tmp_path: Path) -> None:
    source, out = text_out
    stored = tmp_path / "ref.safetensors"
    g4convert("reference", source, "-o", stored, "--prompts", prompts, "-q")
    looser = profile(tmp_path / "looser.yaml", 9.0, 99.0)
    command = f"next: g4convert verify {out} --reference"
    for words, told in (
        ((), f"{command} MODEL  # compares every weight with the original's"),
        (("--level", "static"), f"{command} MODEL  # compares every weight with the original's"),
        (("--reference", source), f"{command} {source} --level logits  # measures how far its answers are from"),
        (("--reference", stored, "--profile", looser), f"next: vllm serve {out}"),
        (("--reference", source, "--profile", "parity", "--prompts", prompts), f"next: vllm serve {out}"),
    ):
        said = g4convert("verify", out, *words).out
        assert said.splitlines()[-1].startswith(told), words
        assert stored not in words or said.startswith(f"PASS {out} against {stored}: static, logits\n")
    assert "next:" not in g4convert("verify", out, "--json").out
    assert g4convert("verify", out, "-q").out == ""


@pytest.mark.usefixtures("brief")
def test_a_next_step_names_the_original_where_it_is(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = text_out
    following = f"next: g4convert verify {out} --reference {{}}  # compares every weight with the original's"
    monkeypatch.chdir(source.parent)
    assert g4convert("verify", out).out.splitlines()[-1] == following.format(source.name)
    assert f" quantize {source.name} -o {out.name}-2" in requantize_command(str(out))
    other = tmp_path / source.name
    other.mkdir()
    (other / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)  # a directory of that name that holds another model
    assert g4convert("verify", out).out.splitlines()[-1] == following.format("MODEL")


def test_an_output_of_rules_is_made_anew_without_them(text: Path, g4convert: Program, tmp_path: Path) -> None:
    """Rules override `--bits`, which the command is to be completed with."""
    (tmp_path / "m.yaml").write_text("extends: w4a16-g32\nbits: {attention: 8}\nrules: [{layers: 0, bits: 8}]\n")
    g4convert("quantize", text, "-o", tmp_path / "out", "-r", tmp_path / "m.yaml", "--verify", "none", "-q")
    assert requantize_command(str(tmp_path / "out")).endswith(" -o out-2 --bits attention=8")


def profile(path: Path, passes: float, fail: float) -> Path:
    """Write a profile that judges the mean KL alone."""
    path.write_text(
        "description: of a test\ncompares: loss\nmetrics_version: 1\nmax_floor: 1\n"
        f"thresholds: {{kl_mean: {{direction: lower, pass: {passes}, fail: {fail}}}}}\n"
    )
    return path


@pytest.mark.usefixtures("brief")
def test_a_loss_that_fails_names_one_command(
    text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Report] = []
    show = show_report.print_report
    monkeypatch.setattr(show_report, "print_report", lambda at, one, **how: (told.append(one), show(at, one, **how)))
    source, out = text_out
    strict = profile(tmp_path / "strict.yaml", 0.0, 1e-9)
    ran = g4convert("verify", out, "--reference", source, "--profile", strict)
    assert ran.status == 1
    lines = ran.out.splitlines()
    made = f"next: g4convert quantize {source} -o {source.name}-W8A16 -r w8a16-g32  # 8 bits: loses less"
    assert lines[-1] == made
    assert "answers that are scored: " in ran.out
    (eight,) = (line for line in lines if "`-r w8a16-g32`" in line)
    assert re.fullmatch(r" +- `-r w8a16-g32`: 8 bits, [\d.]+ .B, KL at most about [\d.e-]+, should fail, too", eight)
    assert told[0].metrics["advice"][0]["options"] == "-r w8a16-g32"
    at = next(number for number, line in enumerate(lines) if line.startswith("to keep layer "))
    (tmp_path / "kept.yaml").write_text("\n".join(lines[at + 1 : at + 3]))
    assert re.fullmatch(
        r"this alone is not enough: the mean KL's upper end would be about [\d.e-]+, not [\d.e-]+; up to 0 passes",
        lines[at + 3],
    )
    kept = json.loads(g4convert("plan", source, "-r", tmp_path / "kept.yaml", "--json", "-v").out)["tensors"]
    layer = f"model.layers.{lines[at].split()[3]}."
    assert {one["action"] for one in kept if layer in str(one) and "_proj" in str(one)} == {"keep"}
    assert {one["action"] for one in kept if "_proj" in str(one)} == {"keep", "pack"}


def test_what_check_mends_is_said(text_out: tuple[Path, Path], g4convert: Program, tmp_path: Path) -> None:
    out = damaged(text_out[1], tmp_path / "out", STATIC["wrong group size"])
    following = f"next: g4convert check {out} --fix  # corrects its quantization_config"
    assert g4convert("verify", out).out.splitlines()[-1] == following
    assert g4convert("check", out, "--fix").status == 0
    lost = damaged(text_out[1], tmp_path / "lost", lose("model.layers.0.layer_scalar"))
    assert "next:" not in g4convert("verify", lost).out


def test_a_retry_repeats_the_verdict(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verification that failed or was stopped must not end with 0 because the output is there."""
    command = ("quantize", text, "-o", tmp_path / "out")
    assert [g4convert(*command).status, g4convert(*command).status] == [0, 0]
    wrong = Finding("static.ignore", Severity.FAIL, "lm_head", "packed", "kept", "quantize again")
    monkeypatch.setattr("g4convert.verification.run.check_static", lambda *_, **__: [wrong])
    told = g4convert(*command)
    assert (told.status, told.out.startswith("already done: "), "verifying it again" in told.out) == (1, True, True)
    assert "does not verify" in told.err
    document = json.loads(g4convert(*command, "--json").out)
    assert (document["already_done"], document["verify"]["verdict"]) == (True, "fail")
    assert g4convert(*command, "-q").status == 1
    assert g4convert(*command, "--verify", "none").status == 0


def test_what_was_written_wrong_is_not_offered_to_be_served(
    text: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding("static.ignore", Severity.FAIL, "lm_head", "packed", "kept", "quantize again")
    monkeypatch.setattr("g4convert.verification.run.check_static", lambda *_, **__: [wrong])
    ran = g4convert("quantize", text, "-o", tmp_path / "wrong")
    assert ran.status == 1
    assert "written" in ran.out
    assert "next: " not in ran.out
    monkeypatch.undo()
    assert "next: g4convert verify" in g4convert("quantize", text, "-o", tmp_path / "right").out
