"""Descriptions of checkpoints: what is there, what is missing, what is unknown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.described import MOE, TEXT, UNIFIED, Tensors, described, packed, plain, quantized, texts
from helpers.stored import zeros

from g4convert.checkpoint.directory import Checkpoint
from g4convert.gemma4 import Architecture
from g4convert.inspection.describe import describe


@pytest.mark.parametrize("config", [TEXT, MOE, UNIFIED])
def test_a_plain_checkpoint(tmp_path: Path, config: dict[str, Any]) -> None:
    tensors = plain(config)
    found = described(tmp_path, tensors, config)
    assert found.family == Architecture.from_config(config).family
    assert (found.unknown, found.missing, found.remarks, found.declared) == ((), (), (), None)
    assert found.total.tensors == len(tensors)
    assert found.total.nbytes == sum(len(data) for _, _, data in tensors.values()) == 2 * found.total.params
    assert {size.bits_per_weight for size in found.roles} == {16.0}


def test_fused_experts_count_as_their_experts(tmp_path: Path) -> None:
    single = described(tmp_path / "single", plain(MOE), MOE)
    fused = described(tmp_path / "fused", plain(MOE, fused=True), MOE)
    assert fused.missing == single.missing == ()
    assert [(s.role, s.params) for s in fused.roles] == [(s.role, s.params) for s in single.roles]


def test_dialect_missing_and_unknown(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": value for name, value in plain(TEXT).items()}
    del tensors["base_model.model.model.norm.weight"]
    found = described(tmp_path, {**tensors, "surprise": zeros("F32", 3)}, TEXT)
    assert [use.name for use in found.dialects] == ["peft"]
    assert found.missing == ("model.norm.weight",)
    assert found.unknown == ("surprise",)


def test_another_model_is_described_too(tmp_path: Path) -> None:
    found = described(tmp_path, {"model.w.weight": zeros("F16", 4, 4)}, {"model_type": "llama"})
    assert found.family == found.model_type == "llama"
    assert "llama" in texts(found)[0]
    assert [(s.role, s.schemes) for s in found.roles] == [("unknown", {"f16": 1})]


def test_a_config_without_model_type(tmp_path: Path) -> None:
    assert described(tmp_path, {"a": zeros("F16", 4)}, {}).model_type == "unknown"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t, m: t.pop(f"{m}.weight_scale"), "no weight_scale"),
        (
            lambda t, m: t.update({f"{m}.weight_packed": zeros("I32", 32, 8)}),
            "weight_packed [32, 8] for a weight",
        ),
        (lambda t, m: t.update({f"{m}.weight_scale": zeros("BF16", 64, 3)}), "3 groups do not divide 64"),
        (
            lambda t, m: t.update({f"{m}.weight_scale": zeros("BF16", 32, 2)}),
            "weight_scale [32, 2] for [64, 64]",
        ),
        (lambda t, m: t.update({f"{m}.weight": zeros("BF16", 64, 64)}), "stored plain and quantized at once"),
    ],
)
def test_modules_that_do_not_hold_together(
    tmp_path: Path, damage: Callable[[Tensors, str], object], words: str
) -> None:
    tensors = packed(plain(TEXT))
    damage(tensors, "model.layers.0.self_attn.q_proj")
    found = described(tmp_path, tensors, quantized(TEXT, ["lm_head"]))
    assert any(words in text for text in texts(found))


def test_a_lost_payload_is_missing_and_its_scale_unknown(tmp_path: Path) -> None:
    tensors = packed(plain(TEXT))
    del tensors["model.layers.0.mlp.up_proj.weight_packed"]
    found = described(tmp_path, tensors, quantized(TEXT, ["lm_head"]))
    assert found.missing == ("model.layers.0.mlp.up_proj.weight",)
    assert found.unknown == tuple(f"model.layers.0.mlp.up_proj.weight_{part}" for part in ("scale", "shape"))


def test_json_and_tables(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "old.bin").write_text("")
    found = described(tmp_path, packed(plain(MOE)), quantized(MOE, ["lm_head", "q_prj"]))
    values = json.loads(json.dumps(found.to_dict()))
    assert values["schema_version"] == 1
    assert values["side_files"] == ["tokenizer.json"]
    assert values["stray_files"] == ["old.bin"]
    assert sum(role["bytes"] for role in values["roles"]) == values["total"]["bytes"] == found.total.nbytes
    tables = {table.title: table for table in found.tables()}
    assert ("q_prj", "ignore", "nothing") in tables["entries of the config"].rows
    for table in found.tables():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert all(isinstance(cell, str) for row in table.rows for cell in row)


@pytest.mark.parametrize("family", ["moe", "dense", "unified", "e2b", "text", "assistant"])
def test_real_fixtures_hold_no_surprise(checkpoints: Callable[[str], Path], family: str) -> None:
    found = describe(Checkpoint.open(checkpoints(family)))
    assert (found.unknown, found.missing, found.remarks) == ((), (), ())
