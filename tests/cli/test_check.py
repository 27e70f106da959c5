"""The command `check`, and the gate of engines in `plan` and `quantize`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from helpers import sparse
from helpers.configs import LAYER, copied, damaged, good, lose, without
from helpers.program import g4convert
from helpers.released_configs import stored

from g4convert.cli.next_steps import requantize_command
from g4convert.gemma4 import Architecture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.program import Program

__all__ = ["copied", "g4convert", "good"]


def test_the_command_prints_verdicts_and_reasons(g4convert: Program, good: Callable[[str], Path]) -> None:
    ran = g4convert("check", good("26B-A4B"), "--engine", "sglang", "--engine", "vllm")
    assert ran.status == 1
    assert "fail engines.sglang SGLang 0.5.23, TP 1: experts: both kernels, Marlin and Triton, assert SiLU" in ran.out
    assert "--pack attention --pack mlp" in ran.out
    assert "transformers" not in ran.out
    assert g4convert("check", good("26B-A4B"), "--engine", "vllm", "-q").out == ""


def test_the_command_as_json(g4convert: Program, good: Callable[[str], Path]) -> None:
    ran = g4convert("check", good("26B-A4B"), "--json", "--tp", 2, "--tp", 4)
    document = json.loads(ran.out)
    assert [(one["engine"], one["tp"], one["loads"]) for one in document["engines"]] == [
        ("transformers", 1, "no"),
        ("vllm", 2, "caveat"),
        ("vllm", 4, "no"),
        ("sglang", 2, "no"),
        ("sglang", 4, "no"),
    ]
    assert document["engines"][2]["problems"][1]["remedy"]
    assert document["verdict"] == "warn"


def test_the_command_says_that_nothing_is_quantized(
    g4convert: Program, good: Callable[[str], Path], dense: Path
) -> None:
    assert g4convert("check", dense).out.startswith("nothing is quantized here; ")
    assert json.loads(g4convert("check", dense, "--json").out)["packed_modules"] == 0
    assert "nothing is quantized" not in g4convert("check", good("31B")).out
    assert json.loads(g4convert("check", good("31B"), "--json").out)["packed_modules"] > 0


@pytest.fixture
def in_cache(good: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot of `somebody/gemma` in an otherwise empty cache: links to blobs, as the hub's library makes them."""
    repo = tmp_path / "hub" / "models--somebody--gemma"
    snapshot = repo / "snapshots" / ("a" * 40)
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    for file in good("31B").iterdir():
        (repo / "blobs" / file.name).hardlink_to(file)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("command", ["check", "verify"])
@pytest.mark.parametrize("name", ["somebody/gemma", "somebody/gemma@main"])
def test_the_commands_take_hub_names(command: str, name: str, g4convert: Program, in_cache: Path) -> None:
    assert in_cache
    document = json.loads(g4convert(command, name, "--json").out)
    assert (document["output"], document["verdict"]) == (name, "pass")
    ran = g4convert(command, name)
    assert str(in_cache) not in ran.out + ran.err
    assert in_cache.name not in ran.out
    ran = g4convert(command, "somebody/else")
    assert (ran.status, ran.out) == (5, "")
    assert "somebody/else: not in the Hugging Face cache" in ran.err


@pytest.mark.parametrize("command", ["check", "verify"])
def test_a_snapshot_is_mended_as_a_copy(command: str, g4convert: Program, in_cache: Path) -> None:
    """The next step is a command that is not refused, and that others who share the cache are not hurt by."""
    config = json.loads((in_cache / "config.json").read_text())
    config["quantization_config"]["ignore"] = []
    (in_cache / "config.json").unlink()
    (in_cache / "config.json").write_text(json.dumps(config))
    for name, chosen in (("somebody/gemma", ""), ("somebody/gemma@main", " --revision main"), (str(in_cache), "")):
        ran = g4convert(command, name)
        assert ran.status == 1
        copy = f"hf download somebody/gemma{chosen} --local-dir gemma; g4convert check gemma --fix"
        assert f"next: {copy}  # corrects" in ran.out
        refused = g4convert("check", name, "--fix")
        assert f"hint: {copy}\n" in refused.err


@pytest.mark.parametrize("name", ["somebody/gemma", "somebody/gemma@main"])
def test_an_output_made_anew_has_the_name_of_the_repository(name: str, in_cache: Path) -> None:
    assert in_cache
    assert " -o gemma-2" in requantize_command(name)
    assert " -o gemma-2" in requantize_command(str(in_cache))


def test_the_command_does_not_change_a_cache(g4convert: Program, in_cache: Path) -> None:
    before = {path.name: (path.is_symlink(), path.read_bytes()) for path in in_cache.glob("*.json*")}
    for name in ("somebody/gemma", in_cache):
        ran = g4convert("check", name, "--fix")
        assert (ran.status, ran.out) == (2, "")
        assert "hint: hf download somebody/gemma --local-dir gemma; g4convert check gemma --fix" in ran.err
    assert {path.name: (path.is_symlink(), path.read_bytes()) for path in in_cache.glob("*.json*")} == before


def test_what_fix_did_is_in_the_document(g4convert: Program, copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("lm_head"))
    assert "fix" not in json.loads(g4convert("check", directory, "--json").out)
    ran = g4convert("check", directory, "--fix", "--json")
    done = json.loads(ran.out)["fix"]
    assert (ran.status, done["written"], done["refused"]) == (0, True, None)
    assert done["old"] == str(directory / "config.json.orig")
    assert "quantization_config.ignore: " in done["changes"][0]
    again = json.loads(g4convert("check", directory, "--fix", "--json").out)["fix"]
    assert again == {"written": False, "old": None, "changes": [], "refused": None}


def test_a_fix_that_is_refused_is_in_the_document(g4convert: Program, copied: Callable[..., Path]) -> None:
    def asymmetric(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False

    directory = copied("31B", asymmetric)
    before = (directory / "config.json").read_bytes()
    ran = g4convert("check", directory, "--fix", "--json")
    document = json.loads(ran.out)
    assert (ran.status, document["verdict"], document["fix"]["written"]) == (1, "fail", False)
    refused = document["fix"]["refused"]
    assert "what is stored cannot confirm it" in refused["message"]
    assert "symmetric is false" in refused["reasons"][0]
    assert refused["hint"]
    assert f"error: {refused['message']}\n" in ran.err
    assert (directory / "config.json").read_bytes() == before


def test_what_a_quantization_config_cannot_mend_is_said_of_it_alone(
    g4convert: Program, copied: Callable[..., Path]
) -> None:
    """Another key of config.json is wrong here, and would mend it."""
    ran = g4convert("check", copied("31B", lambda config: config.update(tie_word_embeddings=False)), "--fix")
    assert ran.status == 1
    assert "not fixed: no quantization_config can mend what fails\n" in ran.err


def test_the_command_fixes(g4convert: Program, copied: Callable[..., Path]) -> None:
    directory = copied("31B", without("lm_head"))
    assert g4convert("check", directory).status == 1
    ran = g4convert("check", directory, "--fix")
    assert ran.status == 0
    assert "config.json.orig" in ran.err
    assert "  quantization_config.ignore: " in ran.err
    again = g4convert("check", directory, "--fix")
    assert (again.status, again.err) == (0, "config.json: nothing to correct\n")


def test_the_command_says_why_it_does_not_fix(g4convert: Program, tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", lose(f"{LAYER}.layer_scalar"))
    ran = g4convert("check", directory, "--fix")
    assert ran.status == 1
    assert "not fixed" in ran.err
    assert "layer_scalar" in ran.err


def test_strict_fails_on_a_warning(g4convert: Program, good: Callable[[str], Path]) -> None:
    assert g4convert("check", good("26B-A4B")).status == 0
    assert g4convert("check", good("26B-A4B"), "--strict").status == 1


def test_plan_and_quantize_hold_the_gate(g4convert: Program, tmp_path: Path) -> None:
    config = sparse.little("26B-A4B")
    source = sparse.write(tmp_path / "m", config, stored(Architecture.from_config(config)).values(), {})
    shown = g4convert("plan", source)
    assert shown.status == 0
    assert "1, 2, 4, 8" in shown.out
    refused = g4convert("plan", source, "--engine", "sglang")
    assert refused.status == 1
    assert "SGLang 0.5.23 cannot load it" in refused.err
    assert "experts" in refused.out  # the plan is told all the same
    assert g4convert("plan", source, "--engine", "vllm", "--tp", 2).status == 0
    assert g4convert("plan", source, "--engine", "vllm", "--tp", 4).status == 1
    assert g4convert("plan", source, "--engine", "ollama").status == 2

    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: w4a16-g32\nengines: [vllm, sglang]\n")
    ran = g4convert("quantize", source, "-o", tmp_path / "out", "-r", recipe)
    assert ran.status == 1
    assert "GELU" in ran.err
    assert not list(tmp_path.glob("out*"))
    for option in (["--engine", "vllm", "--tp", 4], ["--engine", "transformers"]):
        assert g4convert("quantize", source, "-o", tmp_path / "out", *option).status == 1
    assert not list(tmp_path.glob("out*"))


def test_an_option_wins_over_a_recipe(g4convert: Program, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("engines: [sglang]\n")
    told = json.loads(g4convert("plan", "x", "-r", recipe, "--show-config", "--json").out)
    assert told["engines"] == {"value": ["sglang"], "from": str(recipe)}
    told = json.loads(g4convert("plan", "x", "-r", recipe, "--engine", "vllm", "--show-config", "--json").out)
    assert told["engines"] == {"value": ["vllm"], "from": "--engine"}


def test_every_remedy_of_an_engine_is_printed(g4convert: Program, copied: Callable[..., Path]) -> None:
    out = g4convert("check", copied("26B-A4B", without("router")), "--engine", "transformers").out
    assert "`--pack attention --pack mlp` to leave experts in bf16" in out
    assert "check OUT --fix" in out


def test_the_plan_is_short_about_engines(g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sparse.little("26B-A4B")
    source = sparse.write(tmp_path / "m", config, stored(Architecture.from_config(config)).values(), {})
    assert len(json.loads(g4convert("plan", source, "--json").out)["engines"]) == 9
    for columns, most in ((240, 10), (100, 14)):
        monkeypatch.setenv("COLUMNS", str(columns))
        told = g4convert("plan", source).out.partition("\nengine ")[2].partition("\n\n")[0]
        assert 5 < len(told.splitlines()) <= most
