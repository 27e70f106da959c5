"""Descriptions of checkpoints by others: compressed-tensors is the oracle for its own formats."""

import json
import re
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import compress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.utils.match import match_name
from helpers.rewriting import rewritten
from helpers.stored import Stored, write_checkpoint, zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoConfig

from g4convert.checkpoint.declared import declared_in
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.entries import Entries
from g4convert.checkpoint.sections import section_of
from g4convert.gemma4 import Architecture, expected_weights, fused_experts
from g4convert.inspection.describe import describe
from g4convert.inspection.description import Description

TEXT: dict[str, Any] = {
    "model_type": "gemma4_text", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "global_head_dim": 32, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}  # fmt: skip
MOE = {**TEXT, "enable_moe_block": True, "num_experts": 2, "moe_intermediate_size": 64, "top_k_experts": 1}
UNIFIED: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "text_config": {**TEXT, "model_type": "gemma4_unified_text"},
    "vision_config": {"mm_embed_dim": 64, "output_proj_dims": 64, "patch_size": 4, "mm_posemb_size": 8},
}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Tensors = dict[str, Stored]


def plain(config: Mapping[str, Any], *, fused: bool = False) -> Tensors:
    """Every tensor of a model, as zeros."""
    architecture = Architecture.from_config(config)
    expected = expected_weights(architecture)
    tensors = {name: zeros("BF16", *e.shape) for name, e in expected.items() if not (fused and "experts." in name)}
    if fused:
        tensors |= {name: zeros("BF16", *e.shape) for name, e in fused_experts(architecture).items()}
    return tensors


def pack(weight: Stored, *, bits: int = 4, group: int = 32) -> Tensors:
    """The parts of a pack-quantized weight [(e,) n, k]."""
    *rows, k = weight[1]
    shape = b"".join(int(size).to_bytes(8, "little") for size in (rows[-1], k))
    return {
        "packed": zeros("I32", *rows, k * bits // 32),
        "scale": zeros("BF16", *rows, k // group),
        "shape": ("I64", (2,), shape),
    }


def packed(tensors: Tensors, modules: str = r".*\.(self_attn|mlp|experts\.\d+)\..*_proj", **how: int) -> Tensors:
    """Replaces the weights of the modules that fit a pattern."""
    result: Tensors = {}
    for name, weight in tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and re.fullmatch(modules, module):
            result |= {f"{module}.weight_{part}": value for part, value in pack(weight, **how).items()}
        else:
            result[name] = weight
    return result


def quantized(config: Mapping[str, Any], ignore: list[str], **changes: object) -> dict[str, Any]:
    """A config with a quantization section for int4 g32, with changes to it."""
    group = {"targets": ["Linear"], "weights": WEIGHTS}
    section = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group},
        "ignore": ignore,
    }  # fmt: skip
    return {**config, "quantization_config": {**section, **changes}}


def described(directory: Path, tensors: Tensors, config: Mapping[str, Any]) -> Description:
    write_checkpoint(directory, {"model.safetensors": tensors}, config=config, index=False)
    return describe(Checkpoint.open(directory))


def texts(description: Description) -> list[str]:
    return [f"{r.subject}: {r.text} x{r.count}" for r in description.remarks]


# --- plain checkpoints -----------------------------------------------------------------------------------


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


# --- quantized: compressed-tensors itself is the oracle ---------------------------------------------------

PRESETS = {
    "W4A16": "int4 g128 symmetric (pack-quantized)",
    "W4A16_ASYM": "int4 g128 asymmetric (pack-quantized)",
    "W8A16": "int8 g128 symmetric (pack-quantized)",
    "W3A16": "int3 g128 symmetric (pack-quantized)",
    "W8A8": "int8 per channel symmetric (int-quantized)",
    "FP8": "float8 per tensor (float-quantized)",
    "FP8_DYNAMIC": "float8 per channel (float-quantized)",
    "FP8_BLOCK": "float8 per block (float-quantized)",
    "NVFP4A16": "float4 g16 (nvfp4-pack-quantized)",
    "MXFP4A16": "float4 g32 (mxfp4-pack-quantized)",
    "MXFP6A16": "float6 g32 (mxfp6-pack-quantized)",
    "MXFP8A16": "float8 g32 (mxfp8-quantized)",
}


def compressed(directory: Path, scheme: QuantizationScheme, module: str) -> Description:
    """Describes what compressed-tensors writes for one Linear [256, 512] under the name of `module`."""
    model = torch.nn.Module()
    model.linear = torch.nn.Linear(512, 256, bias=False, dtype=torch.bfloat16)
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}))
    for name, parameter in model.linear.named_parameters():
        if "scale" in name:
            parameter.data.fill_(1)
    compress_module(model.linear)
    directory.mkdir()
    tensors = {f"{module}.{name}": value.contiguous() for name, value in model.linear.state_dict().items()}
    save_file(tensors, directory / "model.safetensors")
    applied = model.linear.quantization_scheme
    group = {"targets": ["Linear"], "weights": json.loads(applied.weights.model_dump_json())}
    section = quantized({}, [], format=applied.format, config_groups={"group_0": group})
    (directory / "config.json").write_text(json.dumps({**section, "model_type": "toy"}))
    return describe(Checkpoint.open(directory))


@pytest.mark.parametrize("preset", PRESETS)
def test_formats_of_compressed_tensors(tmp_path: Path, preset: str) -> None:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    found = compressed(tmp_path / "m", scheme, "model.layers.0.mlp.up_proj")
    assert list(found.total.schemes) == [PRESETS[preset]]
    assert found.total.params == 256 * 512
    assert len(texts(found)) == 1, "only that the model type is unknown"


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    group=st.sampled_from([32, 64, 128, -1]),
    symmetric=st.booleans(),
)
def test_any_integer_scheme(
    tmp_path_factory: pytest.TempPathFactory, bits: int, group: int, *, symmetric: bool
) -> None:
    strategy = "channel" if group < 0 else "group"
    size = None if group < 0 else group
    weights = QuantizationArgs(num_bits=bits, strategy=strategy, group_size=size, symmetric=symmetric)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    found = compressed(tmp_path_factory.mktemp("m") / "x", scheme, "linear")
    extent = f"g{group}" if size else "per channel"
    zero = "symmetric" if symmetric else "asymmetric"
    assert list(found.total.schemes) == [f"int{bits} {extent} {zero} (pack-quantized)"]


# --- quantized: others' formats ---------------------------------------------------------------------------


def gptq(k: int, n: int, *, bits: int = 4, group: int = 32) -> Tensors:
    return {
        "qweight": zeros("I32", k * bits // 32, n), "qzeros": zeros("I32", k // group, n * bits // 32),
        "scales": zeros("F16", k // group, n), "g_idx": zeros("I32", k),
    }  # fmt: skip


def awq(k: int, n: int) -> Tensors:
    return {
        "qweight": zeros("I32", k, n // 8), "qzeros": zeros("I32", k // 32, n // 8),
        "scales": zeros("F16", k // 32, n),
    }  # fmt: skip


OTHERS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "gptq": (gptq(128, 64), {"bits": 4, "group_size": 32, "sym": True}, "int4 g32 (gptq)"),
    "gptq 8 bit": (gptq(128, 64, bits=8), {"bits": 8, "group_size": 32}, "int8 g32 (gptq)"),
    "gptq square": (gptq(64, 64), {"bits": 4, "group_size": 32, "sym": True}, "int4 g32 (gptq)"),
    "gptq channel": (gptq(64, 64, group=64), {"bits": 4, "group_size": -1}, "int4 per channel (gptq)"),
    "awq": (awq(128, 64), {"bits": 4, "group_size": 32, "zero_point": True}, "int4 g32 (awq)"),
    "modelopt": (
        {
            "weight": zeros("U8", 64, 64), "weight_scale": zeros("F8_E4M3", 64, 8),
            "weight_scale_2": zeros("F32"),
        },
        {}, "float4 g16 (modelopt-nvfp4)",
    ),
    "fp8": (
        {"weight": zeros("F8_E4M3", 64, 128), "weight_scale_inv": zeros("F32", 1, 1)}, {},
        "float8 per tensor (float-quantized)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_formats_of_others(tmp_path: Path, case: str) -> None:
    parts, values, label = OTHERS[case]
    config = {"model_type": "toy", "quantization_config": {"quant_method": case.partition(" ")[0], **values}}
    tensors = {f"model.layers.0.mlp.up_proj.{part}": value for part, value in parts.items()}
    found = described(tmp_path, tensors, config)
    assert list(found.total.schemes) == [label]
    assert found.total.params in {64 * 128, 64 * 64}
    assert len(found.remarks) == 1, "only that the model type is unknown"


def test_fused_packed_experts(tmp_path: Path) -> None:
    tensors = plain(MOE, fused=True)
    for name in fused_experts(Architecture.from_config(MOE)):
        weight = tensors.pop(name)
        tensors |= {f"{name}_{part}": value for part, value in pack(weight).items()}
    found = described(tmp_path, tensors, quantized(MOE, ["re:.*self_attn.*", "re:.*mlp.*", "re:.*router.*"]))
    experts = next(size for size in found.roles if size.role == "experts")
    assert dict(experts.schemes) == {"int4 g32 symmetric (pack-quantized)": 4}
    assert experts.params == 2 * 2 * 3 * 64 * 64
    assert (found.unknown, found.missing, found.remarks) == ((), (), ())


# --- config against tensors -------------------------------------------------------------------------------


def test_a_good_quantized_checkpoint(tmp_path: Path) -> None:
    config = quantized(MOE, ["lm_head", r"re:.*\.router\..*"])
    found = described(tmp_path, packed(plain(MOE)), config)
    assert (found.unknown, found.missing, found.remarks) == ((), (), ())
    schemes = {str(size.role): dict(size.schemes) for size in found.roles}
    assert schemes["experts"] == {"int4 g32 symmetric (pack-quantized)": 12}
    assert schemes["embedding"] == {"bf16": 1}
    assert not any(use.is_dead for use in found.entries)


DISAGREEMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"weights": {**WEIGHTS, "num_bits": 8}}, "num_bits 8 in the config, 4 stored"),
    "group": ({"weights": {**WEIGHTS, "group_size": 64}}, "group_size 64 in the config, 32 stored"),
    "symmetric": ({"weights": {**WEIGHTS, "symmetric": False}}, "symmetric False in the config, True stored"),
    "type": ({"weights": {**WEIGHTS, "type": "float"}}, "type float in the config, int stored"),
    "format": ({"weights": WEIGHTS, "format": "int-quantized"}, "format int-quantized in the config"),
    "channel": (
        {"weights": {"num_bits": 4, "strategy": "channel"}},
        "strategy channel in the config, group stored",
    ),
    "bits left out": (
        {"weights": {"group_size": 32}},
        "num_bits 8 in the config (the default, as it is left out), 4 stored",
    ),
    "group_size left out": (
        {"weights": {"num_bits": 4}},
        "strategy tensor in the config (the default, as it is left out), group stored",
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_config_and_shapes_disagree(tmp_path: Path, case: str) -> None:
    change, words = DISAGREEMENTS[case]
    config = quantized(TEXT, ["lm_head"], config_groups={"group_0": {"targets": ["Linear"], **change}})
    found = described(tmp_path, packed(plain(TEXT)), config)
    assert {r.subject for r in found.remarks} == {"attention", "mlp"}
    assert all(words in remark.text for remark in found.remarks)
    assert sum(remark.count for remark in found.remarks) == 14


@pytest.mark.parametrize(
    ("ignore", "dead"),
    [
        ("lm_head", False),
        ("model.layers.0.self_attn.q_proj", False),
        (r"re:.*\.q_proj$", False),
        ("re:model.layers.1", False),
        ("Linear", False),
        ("Embedding", False),
        ("model.layers.0", False),  # layer_scalar is a tensor of the layer itself
        ("model.layers", True),
        ("model.layers.*", True),
        ("q_proj", False),  # SGLang takes dotted ends of names, as `check` says
        ("re:q_proj", True),
        ("re:.*vision_tower.*", True),
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("re:(", True),
    ],
)
def test_dead_entries(tmp_path: Path, ignore: str, *, dead: bool) -> None:
    found = described(tmp_path, plain(TEXT), quantized(TEXT, [ignore]))
    (use,) = [use for use in found.entries if use.place == "ignore"]
    assert use.is_dead is dead
    assert any("names no module" in text for text in texts(found)) is dead


def test_an_unknown_class_is_not_judged(tmp_path: Path) -> None:
    found = described(tmp_path, plain(TEXT), quantized(TEXT, ["Gemma4TextRouter"]))
    (use,) = [use for use in found.entries if use.place == "ignore"]
    assert use.matches is None
    assert not use.is_dead


def test_one_group_is_as_good_as_a_channel(tmp_path: Path) -> None:
    config = {**TEXT, "hidden_size": 32}
    found = described(tmp_path, packed(plain(config)), quantized(config, ["lm_head"]))
    assert found.remarks == ()


def test_quantized_although_ignored(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(TEXT)), quantized(TEXT, ["lm_head", "re:.*self_attn.*"]))
    assert texts(found) == ["attention: quantized, although ignored x8"]


def test_entries_count_as_each_engine_reads_them(tmp_path: Path) -> None:
    """VLLM renames whole names that have a dot, and those only; SGLang takes dotted ends of names, too."""
    found = described(
        tmp_path, plain(UNIFIED), quantized(UNIFIED, ["lm_head", "q_proj", "embed_vision.embedding_projection"])
    )
    uses = {use.entry: use.matches for use in found.entries if use.place == "ignore"}
    layers = UNIFIED["text_config"]["num_hidden_layers"]
    assert uses["lm_head"] == {"files": 1, "transformers": 1, "vllm": 0, "sglang": 1}
    assert uses["q_proj"] == {"files": 0, "transformers": 0, "vllm": 0, "sglang": layers}
    assert uses["embed_vision.embedding_projection"] is not None
    assert uses["embed_vision.embedding_projection"]["vllm"] == 1


def test_plain_although_targeted(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(MOE)), quantized(MOE, ["lm_head"]))
    routers = "router: plain, although targeted and not ignored, by the names of files, transformers x2"
    assert texts(found) == [routers]  # vLLM and SGLang build routers plain, whatever a config says
    assert found.remarks[0].example == "model.layers.0.router.proj.weight"


def test_quantized_although_no_target_names_it(tmp_path: Path) -> None:
    groups = {"group_0": {"targets": ["re:.*mlp.*"], "weights": WEIGHTS}}
    found = described(tmp_path, packed(plain(TEXT)), quantized(TEXT, [], config_groups=groups))
    assert texts(found) == ["attention: quantized, although no target names it x8"]


def test_names_that_hold_in_one_engine_only(tmp_path: Path) -> None:
    """Google's 12B ignores modules under the names of transformers, which are not those in the files."""
    names = [
        "lm_head",
        "model.embed_vision.patch_dense",
        "model.embed_vision.multimodal_embedder.embedding_projection",
    ]
    found = described(tmp_path, packed(plain(UNIFIED)), quantized(UNIFIED, names))
    uses = {use.entry: use.matches for use in found.entries if use.place == "ignore"}
    assert uses["model.embed_vision.patch_dense"] == {"files": 0, "transformers": 1, "vllm": 0, "sglang": 0}
    assert not any(use.is_dead for use in found.entries)
    assert any("plain, although targeted and not ignored, by the names of" in text for text in texts(found))


def test_groups_by_name_come_before_classes(tmp_path: Path) -> None:
    eight = {"targets": ["re:.*mlp.*"], "weights": {**WEIGHTS, "num_bits": 8}}
    groups = {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}, "group_1": eight}
    mixed = packed(packed(plain(TEXT), r".*\.mlp\..*_proj", bits=8))
    found = described(tmp_path, mixed, quantized(TEXT, ["lm_head"], config_groups=groups))
    assert found.remarks == ()
    schemes = {str(size.role): list(size.schemes) for size in found.roles}
    assert schemes["mlp"] == ["int8 g32 symmetric (pack-quantized)"]
    assert schemes["attention"] == ["int4 g32 symmetric (pack-quantized)"]


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


def test_a_section_without_a_method_declares_nothing(tmp_path: Path) -> None:
    """Google's QAT sources carry one."""
    found = described(tmp_path, plain(TEXT), {**TEXT, "quantization_config": {"qat": True}})
    assert (found.remarks, found.entries) == ((), ())


def test_quantized_without_a_word_in_the_config(tmp_path: Path) -> None:
    found = described(tmp_path, packed(plain(TEXT)), TEXT)
    assert {r.text for r in found.remarks} == {"quantized, but config.json has no quantization_config"}


# --- values -------------------------------------------------------------------------------------------------


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


ENTRIES = st.sampled_from(
    ["a.b", "a", "re:a", "re:.*b$", "re:a.b", "a.*", "re:(", "Linear", "re:", "", "b", "re:b", "A", "a.b.c"]
)


@given(entry=ENTRIES, name=st.sampled_from(["a.b", "a", "b", "a.b.c", "axb", "x.a.b"]))
def test_entries_match_as_in_compressed_tensors(entry: str, name: str) -> None:
    found = Entries.of("compressed-tensors", [entry]).hold(name, frozenset())
    try:
        assert found == match_name(name, entry)
    except re.error:
        assert not found


WEIGHT_KEYS: dict[str, list[object]] = {
    "num_bits": [None, 4, 8], "type": [None, "int", "INT", "int4"], "symmetric": [None, True, False],
    "strategy": [None, "group", "Group", "channel", "tensor", "block", "token", "row"],
    "group_size": [None, -2, -1, 0, 32], "block_structure": [None, [128, 128]], "observer_kwargs": [None, {}],
    "actorder": [None, "weight", "static", "Weight", "none"], "group": [32],
}  # fmt: skip


@settings(max_examples=500)
@given(weights=st.fixed_dictionaries({}, optional={key: st.sampled_from(of) for key, of in WEIGHT_KEYS.items()}))
def test_weights_mean_what_compressed_tensors_makes_of_them(weights: dict[str, Any]) -> None:
    declared = declared_in(quantized(TEXT, [], config_groups={"g": {"targets": ["Linear"], "weights": weights}}))
    assert declared is not None
    (group,) = declared.groups
    try:
        args = QuantizationArgs.model_validate(weights)
    except ValidationError:
        assert declared.faults
        return
    assert not declared.faults
    assert (group.num_bits, group.kind, group.symmetric, group.strategy) == (
        args.num_bits,
        args.type,
        args.symmetric,
        args.strategy,
    )
    assert group.group_size == (args.group_size if args.strategy == "group" else None)
    assert group.implied <= {"num_bits", "symmetric", "strategy"} - {key for key, value in weights.items() if value}


PLACES = {
    "quantization_config": True,
    "text_config.quantization_config": True,
    "compression_config": False,
    "text_config.compression_config": False,
}


@pytest.mark.parametrize("places", [pair for n in (1, 2) for pair in combinations(PLACES, n)])
def test_the_section_is_the_one_that_loaders_take(places: tuple[str, ...], tmp_path: Path) -> None:
    config: dict[str, Any] = {**UNIFIED, "text_config": dict(UNIFIED["text_config"])}
    for place in places:
        holder = config["text_config"] if place.startswith("text_config.") else config
        holder[place.rpartition(".")[2]] = {"quant_method": "compressed-tensors", "ignore": [place]}
    place, section = section_of(config)
    assert (place, section["ignore"]) == (places[0], [places[0]])

    (tmp_path / "config.json").write_text(json.dumps(config))
    read = AutoConfig.from_pretrained(tmp_path)
    taken = getattr(read, "quantization_config", None) or getattr(read.get_text_config(), "quantization_config", None)
    assert (taken is not None) == PLACES[place]
    assert taken is None or taken["ignore"] == [place]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["quant_method", "config_groups", "ignore", "format", "bits", "group_size", "sym", "dynamic",
     "extra_config", "modules_to_not_convert", "targets", "weights", "num_bits", "strategy",
     "input_activations"]
)  # fmt: skip


SECTIONS = st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON)))


@given(section=SECTIONS | JSON)
def test_a_strange_section_is_no_reason_to_fail(section: object) -> None:
    declared = declared_in({"quantization_config": section})
    assert (declared is None) == (section is None)


@pytest.mark.parametrize(
    "blocks",
    [
        {"block_name_to_quantize": "model.language_model.layers,model.extra"},
        {"block_name_to_quantize": ["model.language_model.layers", "model.extra"]},
        {"to_quant_block_names": ["model.language_model.layers", "model.extra"]},
    ],
)
def test_blocks_of_auto_round_are_what_it_quantizes(blocks: dict[str, object]) -> None:
    section = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, **blocks}
    declared = declared_in({"quantization_config": section})
    assert declared is not None
    (group,) = declared.groups
    assert group.targets == ("model.language_model.layers*", "model.extra*")

    def renamed(name: str) -> str:
        return name.replace("model.language_model.", "language_model.model.")

    for rename, layers in ((str, "model.language_model.layers"), (renamed, "language_model.model.layers")):
        entries = Entries.of("auto-round", group.targets, rename)
        assert entries.hold(f"{layers}.0.mlp.up_proj", {"Linear"})
        assert not entries.hold("model.vision_tower.encoder.layers.0.mlp.up_proj", {"Linear"})
        assert not entries.hold("lm_head", {"Linear"})


@given(method=st.sampled_from(["awq", "gptq", "auto-round", "modelopt"]), section=st.dictionaries(KEYS, JSON))
def test_a_strange_single_scheme_is_no_reason_to_fail(method: str, section: dict[str, Any]) -> None:
    assert declared_in({"quantization_config": {**section, "quant_method": method}}) is not None


@pytest.mark.parametrize("family", ["moe", "dense", "unified", "e2b", "text", "assistant"])
def test_real_fixtures_hold_no_surprise(checkpoints: Callable[[str], Path], family: str) -> None:
    found = describe(Checkpoint.open(checkpoints(family)))
    assert (found.unknown, found.missing, found.remarks) == ((), (), ())


def test_names_of_another_quantizer_are_said_to_be_its(dense: Path, tmp_path: Path) -> None:
    """The hint of a refused source promises as much."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (name,) = (name for name in tensors if name.endswith("language_model.layers.0.mlp.up_proj.weight"))
        parts = {"W_q": torch.zeros(4, dtype=torch.uint8), "scale": torch.ones(4), "zero": torch.ones(4)}
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        return rest | {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}

    found = describe(Checkpoint.open(rewritten(dense, tmp_path / "hqq", change)))
    assert [(one.text, one.count) for one in found.remarks] == [("the names are those of HQQ", 1)]
