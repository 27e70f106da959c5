"""The command `plan`, and `inspect`, which prints the same tables."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from helpers import golden
from helpers.program import Program, g4convert

from g4convert.checkpoint.directory import Checkpoint
from g4convert.quantities import nats

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["g4convert"]


@pytest.mark.golden
def test_plan_text(moe: Path, g4convert: Program) -> None:
    ran = g4convert("plan", moe, "--workers", 1)
    assert (ran.status, ran.err) == (0, "")
    golden.check("plan-text/moe.txt", ran.out.partition("next: ")[0].replace(str(moe), "moe"))
    assert all(line == line.rstrip() for line in ran.out.splitlines())


def test_plan_fits_80_columns(moe: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (("plan", moe), ("inspect", moe), ("recipe", "check", "text-only")):
        lines = g4convert(*command).out.splitlines()[1:]
        assert max(len(line) for line in lines if not line.startswith("next: ")) <= 80


def test_a_narrow_terminal_loses_columns_not_words(
    moe: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    g4convert("quantize", moe, "-o", tmp_path / "out", "-q")
    monkeypatch.setenv("COLUMNS", "60")
    for command, last in ((("plan", moe), "16.0"), (("inspect", tmp_path / "out"), "30 x bf16")):
        out = g4convert(*command).out
        head, *rows = out.partition("\nrole ")[2].partition("\n\n")[0].splitlines()
        assert "params" not in head
        tower = next(row for row in rows if row.startswith("vision_tower "))
        assert tower.endswith(last)
        assert max(map(len, rows)) <= 60


def test_workers_change_the_estimate(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    for command in (("plan", moe), ("quantize", moe, "-n", "-o", tmp_path / "out")):
        assert "for 1 thread on idle cores" in g4convert(*command, "--workers", 1).out
        assert "for 3 threads on idle cores" in g4convert(*command, "--workers", 3).out


def test_a_plan_says_what_each_method_takes_here_and_gained(moe: Path, g4convert: Program) -> None:
    found = json.loads(g4convert("plan", moe, "--json").out)["methods"]
    assert [one["method"] for one in found] == ["auto", "imatrix", "gptq", "best"]
    assert all(one["seconds"] > 0 and one["memory"] > 0 for one in found)
    lines = [line for line in g4convert("plan", moe).out.splitlines() if line.split()]
    rows = {line.split()[0]: line for line in reversed(lines)}
    for one in found:
        assert rows[one["method"]].endswith(f" {nats(one['kl'])}  fails")
    assert next(line for line in lines if line.startswith("8 bits ")).endswith(" 0.0029  passes")
    told = " ".join(" ".join(lines).split())
    assert "measured on held-out text with a stand-in MoE (Gemma 3 270M with its MLPs split into experts)" in told
    assert "On that model every 4-bit method is expected to fail `verify` and 8 bits to pass; yours may differ" in told
    assert lines[-1].endswith("  # may fail unless the source is QAT; 8 bits: -r w8a16-g32")


def test_a_model_without_experts_has_no_verdict_for_all(dense: Path, g4convert: Program) -> None:
    out = g4convert("plan", dense).out
    assert re.findall(r"  (fails|warns|passes)$", out, re.MULTILINE) == ["fails", "fails", "warns", "warns", "passes"]
    assert "every 4-bit method" not in out
    assert "may fail" not in out


def test_verbose_lists_every_step(moe: Path, g4convert: Program) -> None:
    brief, long = (g4convert("plan", moe, *more).out for more in ((), ("-v",)))
    assert "pack  " not in brief
    assert long.count("\npack  ") == 128
    assert long.count("\nkeep  ") == 72
    steps = json.loads(g4convert("plan", moe, "--json", "-v").out)["tensors"]
    assert len(steps) == 200
    assert "tensors" not in json.loads(g4convert("plan", moe, "--json").out)
    dropped = g4convert("plan", moe, "-v", "--layout", "text-only").out
    assert "drop  model.vision_tower" in dropped


def test_the_methods_of_a_plan_have_their_options(text: Path, g4convert: Program) -> None:
    def rows(*options: object) -> dict[str, list[str]]:
        table = g4convert("plan", text, *options).out.partition("\nmethod  ")[2].splitlines()[1:]
        return {line.split()[0]: line.split()[1:] for line in table if not line.startswith(("  ", "next"))}

    plain = rows()
    assert {name: row[:2] for name, row in plain.items()} == {
        "auto": ["(this", "plan)"],
        **{name: ["-r", f"w4a16-g32-{name}"] for name in ("imatrix", "gptq", "best")},
        "8": ["bits", "-r"],
    }
    assert [row[-2] for row in plain.values()] == ["0.301", "0.175", "0.054", "0.053", "0.0012"]
    assert rows("-r", "w4a16-g32-gptq")["auto"][:2] == ["-r", "w4a16-g32"]
    assert rows("--group-size", 16)["gptq"][:2] == ["--method", "gptq"]
    assert "KL" not in g4convert("plan", text, "-r", "w8a16-g32").out  # not measured at 8 bits


def test_a_plan_says_how_to_write_it(text: Path, g4convert: Program) -> None:
    def following(*options: object) -> str:
        return g4convert("plan", text, *options).out.splitlines()[-1]

    quick = "quick: for a first try or a QAT source; for real use add -r w4a16-g32-gptq"
    assert following() == f"next: g4convert quantize {text} -o {text.name}-W4A16  # {quick}"
    asked = f"next: g4convert quantize {text} -o {text.name}-W4A16-gptq -r w4a16-g32-gptq"
    assert following("-r", "w4a16-g32-gptq") == asked
    assert following("--group-size", 64).endswith("-W4A16 --group-size 64")
    options = ("-r", "w4a16-mlp-only", "--bits", "mlp=8", "--bits", "lm_head=8", "--engine", "vllm", "--tp", "1")
    assert f" {' '.join(options)}" in following(*options)
    assert "next:" not in g4convert("plan", text, "--json").out


def test_plan_says_which_files_are_larger_than_asked(text: Path, g4convert: Program) -> None:
    assert "larger" not in g4convert("plan", text).out
    assert (
        "above max_shard_size 1.00 kB: a module is not split" in g4convert("plan", text, "--max-shard-size", "1KB").out
    )


def test_inspect_names_the_family_and_its_parts(moe: Path, g4convert: Program) -> None:
    text = g4convert("inspect", moe).out
    assert "Gemma 4 MoE" in text
    assert "vision_tower" in text
    assert json.loads(g4convert("inspect", moe, "--json").out)["model_type"] == "gemma4"


def test_inspect_lists_unknown_tensors_to_a_length(moe: Path, g4convert: Program, tmp_path: Path) -> None:
    source = shutil.copytree(moe, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["model_type"] = "llama"
    (source / "config.json").write_text(json.dumps(config))
    brief, long = (g4convert("inspect", source, *more).out for more in ((), ("-v",)))
    names = sorted(Checkpoint.open(source).tensors)
    assert all(name in long for name in names)
    assert f"and {len(names) - 20} more (-v lists all)" in brief
