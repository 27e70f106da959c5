"""Hints about options, recipes and places to write, followed."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Checkpoints
from helpers.program import Program, g4convert

__all__ = ["g4convert"]  # a fixture


@dataclass(frozen=True)
class Options:
    """Options of `plan` that are refused, words of the hint, and the options or the command that it names."""

    given: str
    hint: str
    follow: tuple[str, ...]
    family: str = "dense"


OPTIONS: Mapping[str, Options] = {
    "groups that divide some": Options(
        "--group-size 128", "--group-size 32 or 64 divides all of them", ("--group-size 32", "--group-size 64"), "moe"
    ),
    "groups that divide none": Options(
        "--pack attention --pack vision_tower",
        "none of 32, 64, 128 divides 80: --bits vision_tower=16, or --group-size channel, "
        "or --group-size 8 or 16 (of Linears, SGLang reads none, vLLM those of 16)",
        (
            "--pack attention --pack vision_tower --bits vision_tower=16",
            *(f"--pack attention --pack vision_tower --group-size {size}" for size in ("channel", "8", "16")),
        ),
    ),
    "groups that divide none, by bits": Options(
        "--bits vision_tower=4",
        "divides 80: --bits vision_tower=16",
        ("--bits vision_tower=16", "--bits vision_tower=4 --group-size 16"),
    ),
    "groups that divide some of what others divide": Options(
        "--pack vision_tower --group-size 40",
        "divides 80: --bits vision_tower=16, or --group-size channel, or --group-size 8 or 16",
        ("--pack vision_tower --group-size 16", "--pack attention --pack vision_tower --bits vision_tower=16"),
    ),
    "a lattice of 8 bits": Options(
        "--method lattice --num-bits 8",
        "--num-bits 4, or --method mse",
        ("--method lattice --num-bits 4", "--method mse --num-bits 8"),
    ),
    "nothing to pack": Options(
        "--bits attention=16 --bits mlp=16", "`bits` and `rules` leave nothing to pack at 4 or 8", ("--bits mlp=16",)
    ),
    "a recipe with a typing error": Options("-r w4a16-g33", "did you mean w4a16-g32?", ("-r w4a16-g32",)),
    "experts of a dense model": Options(
        "--pack experts", "`g4convert plan MODEL` lists the roles it has", ("--pack mlp",)
    ),
    "bits of what is not there": Options(
        "--bits experts=8", "`g4convert plan MODEL -v` lists every module", ("--bits mlp=8",)
    ),
    "several precisions in one matrix": Options(
        "-r {}/split.yaml",
        "decide alike on q, k and v, on gate and up, and on all experts of a layer: by `role` and `layers`",
        ("-r {}/alike.yaml",),
    ),
    "an unknown key": Options("-r {}/unknown.yaml", "`g4convert recipe schema` lists every key", ("-r {}/alike.yaml",)),
    "a value that cannot be": Options(
        "-r {}/value.yaml", "`g4convert recipe schema` says what can", ("-r {}/alike.yaml",)
    ),
    "a recipe that is not there": Options(
        "-r {}/none.yaml", "`g4convert recipe list` shows the shipped ones", ("-r w4a16-g32",)
    ),
    "a pattern for nothing": Options("--carry none.txt", "`*` stays in its directory", ("--carry **/*.json",)),
}
RECIPES = {
    "split": "rules:\n- names: '*.q_proj'\n  bits: 8\n",
    "alike": "rules:\n- role: attention\n  layers: 0\n  bits: 8\n",
    "unknown": "rulez: 3\n",
    "value": "group_size: many\n",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_hint_of_refused_options_works(
    name: str, checkpoints: Checkpoints, tmp_path: Path, g4convert: Program
) -> None:
    row, source = OPTIONS[name], checkpoints(OPTIONS[name].family)
    for recipe, text in RECIPES.items():
        (tmp_path / f"{recipe}.yaml").write_text(text)
    refused = g4convert("plan", source, *row.given.format(tmp_path).split())
    assert refused.status in {2, 3}, refused.err
    assert row.hint in refused.err.partition("hint: ")[2], refused.err
    for options in row.follow:
        ran = g4convert("plan", source, *options.format(tmp_path).split())
        assert ran.status == 0, ran.err
    if row.hint.startswith("`g4convert"):
        command = row.hint.split("`")[1].replace("MODEL", str(source)).split()[1:]
        assert g4convert(*command).status == 0


def test_the_hint_about_a_place_to_write_works(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row: what lies at OUT, words of the hint, and the options with which the same command runs."""
    quick = ("--verify", "none", "-q")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    shutil.copy(dense / "config.json", tmp_path / "full")
    (tmp_path / "mine.lock").write_text("a file of somebody\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for given, hint, instead in (
        (("-o", tmp_path / "file"), "give -o another directory", ("-o", tmp_path / "other")),
        (("-o", tmp_path / "full"), "or --overwrite to replace this one", ("-o", tmp_path / "full", "--overwrite")),
        (("-o", tmp_path / "mine"), "move it away, or give -o another name", ("-o", tmp_path / "mine2")),
        (("-o", "."), "cd .. and -o here, or give another directory", ("-o", tmp_path / "there")),
        (("-o", tmp_path / "cuda", "--device", "cuda"), "--device cpu computes the same", ("-o", tmp_path / "cuda")),
        ((), f"-o {dense.name}-W4A16", ("-o", f"{dense.name}-W4A16")),
    ):
        refused = g4convert("quantize", dense, *given, *quick)
        assert refused.status in {2, 3, 5}, refused.err
        assert hint in refused.err.partition("hint: ")[2], refused.err
        assert g4convert("quantize", dense, *instead, *quick).status == 0, hint


@pytest.mark.parametrize(
    ("aside", "hint"),
    [("", "--overwrite makes it again"), ("out.replaced", "move it away"), ("out.partial", "move it away")],
)
def test_the_hint_about_what_lies_beside_an_output_works(
    aside: str, hint: str, dense: Path, tmp_path: Path, g4convert: Program
) -> None:
    """An output that was changed, an old one that was put aside, and something where unfinished runs lie."""
    out = tmp_path / "out"
    command = ("quantize", dense, "-o", out, "--method", "minmax", "--verify", "none", "-q")
    if not aside:
        assert g4convert(*command).status == 0
        (file,) = out.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        (tmp_path / aside).write_text("a file of somebody")
        command = (*command, "--overwrite")
        shutil.copytree(dense, out)
    refused = g4convert(*command)
    assert refused.status in {2, 3}, refused.err
    assert hint in refused.err.partition("hint: ")[2], refused.err
    if aside:
        assert (tmp_path / aside).read_text() == "a file of somebody"
        (tmp_path / aside).rename(tmp_path / "elsewhere")
    assert g4convert(*command, *(() if aside else ("--overwrite",))).status == 0
