"""The command `quantize`: what it says, and what it leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from helpers.program import Program, g4convert

from g4convert import quantize

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from conftest import Checkpoints

__all__ = ["g4convert"]


def test_quantize_says_what_it_did(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out")
    assert ran.status == 0
    assert "6.46 MB of 6.46 MB" in ran.err
    for text in (
        "6.46 MB -> 2.08 MB in 1 file, 5.2 bits per weight",
        "method   mse (least squared error), as the source shows no sign of QAT: 0.0 % of its groups ",
    ):
        assert text in ran.out
    assert re.search(
        r"\nerror +0\.\d+ % \(attention 0\.\d+ %, mlp 0\.\d+ %, experts 0\.\d+ %\): squared errors", ran.out
    )
    assert "layers." not in ran.out
    refused = "not for transformers 5.17 to 5.24, SGLang 0.5.23: `g4convert check"
    assert f"\n{refused} {tmp_path / 'out'}` says why\n" in ran.out
    measure = f"g4convert verify {tmp_path / 'out'} --reference {moe} --level logits"
    assert ran.out.endswith(f"\nnext: {measure}  # measures its answers: may fail; 8 bits: -r w8a16-g32\n")
    assert "vllm serve" not in ran.out  # not before they are measured
    assert g4convert("check", tmp_path / "out", "--engine", "sglang").status == 1


def test_the_card_names_who_refuses_the_result(dense: Path, g4convert: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "refused" not in g4convert("quantize", dense, "-o", out).out
    options = ("--overwrite", "--verify", "none", "--engine", "vllm", "--tp", 4)
    asked = f"`g4convert check {out} --tp 4`"
    assert (
        f"\nnot for SGLang 0.5.23 on 4 GPUs: {asked} says why\n"
        in g4convert("quantize", dense, "-o", out, *options).out
    )
    document = json.loads(g4convert("quantize", dense, "-o", out, *options, "--json").out)
    assert document["refused_by"] == [{"engine": "sglang", "version": "SGLang 0.5.23", "tp": 4}]


def test_no_command_is_offered_that_vllm_refuses(dense: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", dense, "-o", tmp_path / "out", "--group-size", 8)
    assert "\nnot for vLLM 0.33" in ran.out
    assert "vllm serve" not in ran.out


def test_quiet_verbose_json_and_overwrite(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    command = ("quantize", moe, "-o", tmp_path / "out")
    quiet = g4convert(*command, "-q")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")
    refused = g4convert(*command, "--method", "minmax")
    assert refused.status == 2
    held = f"not empty: it holds a conversion of {moe.name} by recipe w4a16-g32 (method auto, not minmax)"
    hint = "give -o another directory, or --overwrite to replace this one"
    assert refused.err == f"error: {tmp_path / 'out'}: {held}\nhint: {hint}\n"
    verbose = g4convert(*command, "--overwrite", "-v")
    assert verbose.out.partition("all tensors")[2].count("\nlayers.") == 128
    found = json.loads(g4convert(*command, "--overwrite", "-q", "--json").out)
    assert found["schema_version"] == 1
    assert found["output"] == str(tmp_path / "out")
    assert len(found["worst"]) == 5


def test_what_is_done_already_is_not_done_again(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    """A CI job that is run again; what is of another recipe, or not whole, is refused as ever."""
    command = ("quantize", moe, "-o", tmp_path / "out", "--verify", "none")
    g4convert(*command, "-q")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    ran = g4convert(*command)
    assert (ran.status, ran.out.partition(":")[0]) == (0, "already done")
    assert "verifying" not in ran.out
    assert json.loads(g4convert(*command, "--json").out)["already_done"] is True
    assert g4convert(*command, "-q").out == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert g4convert(*command, "--group-size", 64).status == 2
    next((tmp_path / "out").glob("*.safetensors")).unlink()
    assert g4convert(*command).status == 2


def test_the_card_says_what_is_not_known(text: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", text, "-o", tmp_path / "out", "--verify", "none")
    answers, _, table = ran.out.partition("\nanswers: ")[2].partition(":\n")
    other = "On another model, Gemma 3 270M, with all its layers packed, these methods left"
    assert answers == f"not measured yet. {other}"
    rows = [line.split() for line in table.splitlines()]
    assert [row[:5] for row in rows[1:4]] == [
        ["mse", "(as", "here)", "0.301", "fails"],
        ["imatrix", "-r", "w4a16-g32-imatrix", "0.175", "fails"],
        ["gptq", "-r", "w4a16-g32-gptq", "0.054", "warns"],
    ]
    assert rows[4][:3] == ["best", "(gptq,", "trained)"]
    assert rows[5][:-2] == ["8", "bits", "(estimated)", "-r", "w8a16-g32", "up", "to", "0.0012", "passes"]
    assert f"next: g4convert verify {tmp_path / 'out'} --reference {text} --level logits  # " in ran.out
    ran = g4convert("quantize", text, "-o", tmp_path / "plain", "--method", "minmax", "--verify", "none")
    assert "\n8 bits (estimated) " in ran.out


def test_the_card_repeats_the_times_of_the_plan(text: Path, g4convert: Program, tmp_path: Path) -> None:
    planned = json.loads(g4convert("plan", text, "--workers", 1, "--json").out)["methods"]
    ran = quantize(text, tmp_path / "out", workers=1, verify=None)
    assert [round(one.seconds, 1) for one in ran.costs] == [one["seconds"] for one in planned]


def test_files_of_a_conversion_are_not_called_carried_over(text: Path, g4convert: Program, tmp_path: Path) -> None:
    g4convert("quantize", text, "-o", tmp_path / "out", "--verify", "none", "-q")
    lines = g4convert("inspect", tmp_path / "out").out.splitlines()
    assert any(line.split()[:1] == ["g4convert.json"] and "by g4convert" in line for line in lines)
    assert not [line for line in lines if line.startswith(("g4convert.json", "README.md")) and "carried" in line]


def test_a_drafter_is_not_served_alone(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", checkpoints("assistant"), "-o", tmp_path / "out")
    assert "method   nothing is packed" in ran.out
    assert "answers:" not in ran.out, "they are the original's"
    assert "next: vllm serve TARGET --speculative-config " in ran.out


def test_dry_run_checks_the_output_and_the_device(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert g4convert("quantize", moe, "-o", tmp_path / "full", "--dry-run").status == 2
    assert g4convert("quantize", moe, "-o", tmp_path / "out", "-n", "--device", "tpu").status == 2
    done = g4convert("quantize", moe, "-o", tmp_path / "out", "-n")
    assert done.status == 0
    assert done.out == g4convert("plan", moe).out.partition("next: ")[0]
    assert done.err == "dry run: nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert g4convert("quantize", moe, "-o", tmp_path / "out", "-n", "-q").err == ""


def test_dry_run_finds_a_place_that_cannot_be_written(
    moe: Path, g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error as the run itself gives, but that the disk may fill until then."""
    nowhere = g4convert("quantize", moe, "-o", "/proc/out", "-n")  # a directory in which root makes nothing, either
    assert (nowhere.status, nowhere.out) == (5, "")
    assert nowhere.err.startswith("error: /proc/out.partial: cannot be made: ")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    full = g4convert("quantize", moe, "-o", tmp_path / "a" / "out", "-n")
    assert full.status == 5
    assert re.match(r"error: \S+/a/out\.partial: no room for 2\.\d+ MB: No space left on device\nhint: free", full.err)
    assert not list(tmp_path.iterdir())


def test_an_empty_output_is_said_to_be_empty(moe: Path, g4convert: Program) -> None:
    for given in (("-o", ""), ("--output=",)):
        ran = g4convert("quantize", moe, *given)
        assert (ran.status, ran.err) == (2, f"error: {given[0].rstrip('=')} is empty\nhint: name what to write\n")


def test_a_device_that_is_not_there_leaves_nothing(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out", "--device", "cuda:7")
    assert ran.status == 5
    assert "hint: --device cpu computes the same" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_no_output_names_one(moe: Path, g4convert: Program) -> None:
    ran = g4convert("quantize", moe, "--num-bits", 8)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"error: no output directory\nhint: say where to write: -o {moe.name}-W8A16\n"


def test_a_number_of_gpus_needs_an_engine(moe: Path, tmp_path: Path, g4convert: Program) -> None:
    ran = g4convert("quantize", moe, "-o", tmp_path / "out", "--tp", 4)
    assert (ran.status, "--engine vllm" in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_sigterm_is_an_interruption(moe: Path, tmp_path: Path) -> None:
    code = (
        "import time; from g4convert.cli import app as cli; from g4convert.conversion import stream\n"
        "from g4convert.planning import units as work\n"
        "work._UNIT_BYTES = 1; do = stream._UnitWorker.do\n"
        "stream._UnitWorker.do = lambda self, unit: (time.sleep(0.05), do(self, unit))[1]\n"
        f"cli.main(['quantize', {str(moe)!r}, '-o', {str(tmp_path / 'out')!r}, '--workers', '1'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    journal, deadline = tmp_path / "out.partial" / "journal.jsonl", time.monotonic() + 60
    while not journal.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75, stderr
    assert f"hint: continue with: g4convert quantize {moe} -o {tmp_path / 'out'} --workers 1\n" in stderr
    assert "Traceback" not in stderr


def test_the_method_is_told_with_its_reason(checkpoints: Checkpoints, g4convert: Program, tmp_path: Path) -> None:
    for number, (qat, options, wanted) in enumerate(
        (
            (True, (), "lattice (the source's own grid): source trained for 4 bits (QAT), 100.0 % of its groups"),
            (False, (), "mse (least squared error), as the source shows no sign of QAT: 0.0 % of its groups lie on"),
            (False, ("-r", "w8a16-g32"), "mse (least squared error)\n"),
            (False, ("--method", "minmax"), "minmax: as asked\n"),
        )
    ):
        source = checkpoints("text", qat=qat)
        ran = g4convert("quantize", source, "-o", tmp_path / str(number), "--verify", "none", *options)
        assert f"\nmethod   {wanted}" in ran.out
        eight = "; expected mean KL: at most about 0.0012 nats (by rule of thumb: the 0.301 of 4 bits on Gemma 3 270M"
        assert (eight in ran.out) == ("w8a16-g32" in options)


def test_check_says_for_which_engines_it_passes(dense: Path, moe: Path, g4convert: Program, tmp_path: Path) -> None:
    def checked(*words: object) -> list[str]:
        return g4convert("check", *words).out.splitlines()

    for source, said, following in (
        (dense, "loads in transformers, vLLM (1, 2, 4 GPUs), SGLang (1, 2 GPUs)", "vllm serve"),
        (moe, "loads in vLLM (1, 2 GPUs); not for transformers, SGLang", "vllm serve"),
    ):
        out = tmp_path / source.name
        g4convert("quantize", source, "-o", out, "--verify", "none", "-q")
        lines = checked(out)
        assert [line for line in lines if line.endswith(said)], lines
        assert lines[-2].startswith(f"next: g4convert verify {out} --reference "), lines[-2]
        assert lines[-2].endswith("  # skip if it has passed")
        assert lines[-1] == f"then, if it passes: {following} {out}"
    one = checked(tmp_path / dense.name, "--engine", "sglang", "--tp", 1)
    assert any(line.endswith(": loads in SGLang (1 GPU)") for line in one)
    refused = checked(tmp_path / moe.name, "--engine", "sglang")
    assert "next:" not in refused[-1]
    assert checked(dense)[-1] == f"next: g4convert plan {dense}  # shows what quantization would make of it"
    assert checked(tmp_path / dense.name, "--tp", 2)[-1].endswith(" --tensor-parallel-size 2")
