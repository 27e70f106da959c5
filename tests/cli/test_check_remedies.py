"""Hints of `check`, `generate`, `reference`, `--carry` and the gate, followed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.program import Program, Ran, brief, g4convert
from helpers.rewriting import Tensors, rewritten
from safetensors.torch import load_file

from g4convert.checkpoint import entries
from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines import ignore
from g4convert.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from conftest import Checkpoints, Packed

__all__ = ["brief", "g4convert"]  # fixtures


def refused(ran: Ran, hint: str) -> None:
    assert ran.status in {1, 2, 3}, ran.err
    assert hint in ran.err.partition("hint: ")[2], ran.err


def worked(ran: Ran) -> None:
    assert ran.status == 0, ran.err + ran.out


@pytest.fixture
def source(dense: Path, tmp_path: Path) -> Path:
    """A copy to put files beside."""
    return shutil.copytree(dense, tmp_path / "source")


def test_what_an_output_may_not_have_is_left_out(source: Path, g4convert: Program) -> None:
    (source / "notes.txt").write_text("mine")
    (source / "training_args.bin").write_bytes(b"")
    os.mkfifo(source / "pipe")
    command = ("plan", source, "--carry", "notes.txt")
    refused(g4convert(*command, "--carry", "training_args.bin"), "leave them out of --carry: programs would read")
    refused(g4convert(*command, "--carry", "pipe"), "leave it out of --carry")
    worked(g4convert(*command))


def test_a_directory_that_exists_is_passed_from_python(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path / "none")
    assert caught.value.hint == "pass the directory that holds config.json"
    assert Checkpoint.open(dense).tensors


def test_patterns_are_written_without_repeats_in_repeats(
    packed: Packed, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_SECONDS", 0.2)
    out = shutil.copytree(packed("dense"), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    good = config["quantization_config"]["ignore"]
    config["quantization_config"]["ignore"] = [*good, "re:(?:[a-z]|[a-m]|[a-f]|[._0-9])*[A-Z]"]
    (out / "config.json").write_text(json.dumps(config))
    refused(g4convert("check", out), "write patterns without repeats in repeats, such as re:.*mlp.*")
    config["quantization_config"]["ignore"] = [*good, "re:.*lm_head.*"]
    (out / "config.json").write_text(json.dumps(config))
    worked(g4convert("check", out))


@pytest.mark.usefixtures("brief")
def test_a_drafter_is_verified_and_its_model_speaks(
    checkpoints: Checkpoints, packed: Packed, g4convert: Program
) -> None:
    drafter, target = checkpoints("assistant"), checkpoints("moe")
    refused(
        g4convert("generate", drafter, "-p", "a", "--max-new-tokens", 1), "generate with the model that it drafts for"
    )
    worked(g4convert("generate", target, "-p", "a", "--max-new-tokens", 1))
    worked(g4convert("verify", packed("assistant"), "--reference", drafter, "--level", "weights"))
    assert f"next: g4convert plan {drafter} --assistant pack  # shows" in g4convert("check", drafter).out


def test_a_tokenizer_is_copied(dense: Path, source: Path, g4convert: Program) -> None:
    (source / "tokenizer.json").unlink()
    command = ("generate", source, "-p", "a", "--max-new-tokens", 1)
    refused(g4convert(*command), "copy tokenizer.json from the model's repository")
    shutil.copy(dense / "tokenizer.json", source)
    worked(g4convert(*command))


@pytest.mark.usefixtures("brief")
def test_a_reference_is_that_of_the_original(dense: Path, packed: Packed, tmp_path: Path, g4convert: Program) -> None:
    stored = tmp_path / "r.safetensors"
    refused(g4convert("reference", packed("dense"), "-o", stored), "a reference holds what the original answers: name")
    worked(g4convert("reference", dense, "-o", stored))


def order_of_columns(out: Path) -> None:
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    changed(out, quantization_config=section)


def symmetric_said_to_be_not(out: Path) -> None:
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["weights"]["symmetric"] = False
    changed(out, quantization_config=section)


def activations(out: Path) -> None:
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int"}
    changed(out, quantization_config=section | {"ignore": []})


def changed(out: Path, **keys: object) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | keys))


AGAIN = "nothing was written; quantize the source again, as with `g4convert quantize`"
UNFIXABLE: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "another order of columns": (order_of_columns, AGAIN),
    "zero points that are not there": (
        symmetric_said_to_be_not,
        "nothing was written; copy what was lost, or quantize",
    ),
    "quantized activations": (activations, "nothing was written; `g4convert check` without --fix tells everything"),
}


@pytest.mark.parametrize("case", UNFIXABLE)
def test_what_cannot_be_fixed_is_quantized_again(
    case: str, dense: Path, packed: Packed, tmp_path: Path, g4convert: Program
) -> None:
    out = shutil.copytree(packed("dense"), tmp_path / "out")
    damage, hint = UNFIXABLE[case]
    damage(out)
    before = (out / "config.json").read_bytes()
    refused(g4convert("check", out, "--fix"), hint)
    assert (out / "config.json").read_bytes() == before
    told = g4convert("check", out)
    assert (told.status, "fail " in told.out) == (1, True)
    worked(g4convert("quantize", dense, "-o", out, "--overwrite", "--verify", "none", "-q"))
    worked(g4convert("check", out))


def test_what_was_lost_is_copied(packed: Packed, tmp_path: Path, g4convert: Program) -> None:
    """Zero points of an asymmetric checkpoint, which the config still declares."""

    def asymmetric(tensors: Tensors) -> Tensors:
        scales = [name for name in tensors if name.endswith("weight_scale")]
        words = {n: torch.zeros((-(-tensors[n].shape[0] // 8), tensors[n].shape[1]), dtype=torch.int32) for n in scales}
        return {**tensors, **{name.replace("_scale", "_zero_point"): one for name, one in words.items()}}

    section = json.loads((packed("dense") / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["weights"]["symmetric"] = False
    whole = rewritten(packed("dense"), tmp_path / "whole", asymmetric, quantization_config=section)
    out = rewritten(whole, tmp_path / "out", lambda t: {n: w for n, w in t.items() if "zero_point" not in n})
    refused(g4convert("check", out, "--fix", "--engine", "vllm"), "copy what was lost")
    lost = {name: one for name, one in load_file(whole / "model.safetensors").items() if "zero_point" in name}
    mended = rewritten(out, tmp_path / "mended", lambda tensors: {**tensors, **lost})
    worked(g4convert("check", mended, "--engine", "vllm"))


def test_a_checkpoint_of_another_format_is_inspected(packed: Packed, tmp_path: Path, g4convert: Program) -> None:
    def renamed(tensors: Tensors) -> Tensors:
        return {name.replace("weight_packed", "qweight"): one for name, one in tensors.items()}

    out = rewritten(packed("dense"), tmp_path / "out", renamed)
    refused(g4convert("check", out), "`g4convert inspect` describes it")
    worked(g4convert("inspect", out))


def test_whole_roles_are_packed_where_no_list_can_be_proved(
    dense: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No recipe is known that needs it: here entries for a part of a role are lost."""
    monkeypatch.setattr(ignore, "_kept_parts", lambda *_: ())
    (tmp_path / "mine.yaml").write_text("rules:\n- role: mlp\n  layers: 0\n  bits: 16\n")
    refused(g4convert("plan", dense, "-r", tmp_path / "mine.yaml"), "pack whole roles, by `pack` and `bits` alone")
    worked(g4convert("plan", dense, "--bits", "mlp=16"))


def test_the_gate_names_what_passes_it(moe: Path, g4convert: Program) -> None:
    """Options between backquotes are those of a command that passes."""
    command = ("plan", moe, "--engine", "vllm", "--tp", 8)
    ran = g4convert(*command)
    hint = ran.err.partition("hint: ")[2]
    assert (ran.status, "`" in hint) == (1, True), ran.err
    ways = [part for part in hint.split("`")[1::2] if part.startswith("--")]
    assert ways, hint
    for way in ways:
        worked(g4convert(*(command if "--tp" not in way else command[:-2]), *shlex.split(way)))
