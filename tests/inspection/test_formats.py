"""Formats of quantized tensors: compressed-tensors is the oracle for its own."""

import json
from collections.abc import Mapping
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
from helpers.described import MOE, Tensors, described, pack, packed, plain, quantized, texts
from helpers.rewriting import rewritten
from helpers.stored import zeros
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from g4convert.checkpoint.directory import Checkpoint
from g4convert.gemma4 import Architecture, fused_experts
from g4convert.inspection.describe import describe
from g4convert.inspection.description import Description

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


def bitsandbytes(kind: str, n: int, k: int, *, block: int = 64, nested: bool = False) -> Tensors:
    """Two codes a byte in one column, whatever the shape; scales of blocks of consecutive weights."""
    blocks = n * k // block
    scales = {"nested_absmax": zeros("F32", 1), "nested_quant_map": zeros("F32", 256)} if nested else {}
    found = {
        "absmax": zeros("U8" if nested else "F32", blocks),
        "quant_map": zeros("F32", 16),
        f"quant_state.bitsandbytes__{kind}": zeros("U8", 100),
    }
    return {"weight": zeros("U8", n * k // 2, 1)} | {f"weight.{part}": one for part, one in (found | scales).items()}


OTHERS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "gptq": (gptq(128, 64), {"bits": 4, "group_size": 32, "sym": True}, "int4 g32 (gptq)"),
    "gptq 8 bit": (gptq(128, 64, bits=8), {"bits": 8, "group_size": 32}, "int8 g32 (gptq)"),
    "gptq square": (gptq(64, 64), {"bits": 4, "group_size": 32, "sym": True}, "int4 g32 (gptq)"),
    "gptq channel": (gptq(64, 64, group=64), {"bits": 4, "group_size": -1}, "int4 per channel (gptq)"),
    "awq": (awq(128, 64), {"bits": 4, "group_size": 32, "zero_point": True}, "int4 g32 (awq)"),
    "bitsandbytes": (bitsandbytes("nf4", 128, 64), {"load_in_4bit": True}, "float4 g64 (bitsandbytes-nf4)"),
    "bitsandbytes nested": (bitsandbytes("fp4", 64, 128, nested=True), {}, "float4 g64 (bitsandbytes-fp4)"),
    "bitsandbytes int8": (
        {"weight": zeros("I8", 64, 128), "SCB": zeros("F32", 64), "weight_format": zeros("U8")},
        {"load_in_8bit": True}, "int8 per channel symmetric (bitsandbytes-int8)",
    ),
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


def test_a_good_quantized_checkpoint(tmp_path: Path) -> None:
    config = quantized(MOE, ["lm_head", r"re:.*\.router\..*"])
    found = described(tmp_path, packed(plain(MOE)), config)
    assert (found.unknown, found.missing, found.remarks) == ((), (), ())
    schemes = {str(size.role): dict(size.schemes) for size in found.roles}
    assert schemes["experts"] == {"int4 g32 symmetric (pack-quantized)": 12}
    assert schemes["embedding"] == {"bf16": 1}
    assert not any(use.is_dead for use in found.entries)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_weights_of_bitsandbytes_have_the_models_shapes(kind: str, dense: Path, tmp_path: Path) -> None:
    """A model has as many weights in this format as in bf16, and no part of a weight is unknown."""

    def change(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = dict(tensors)
        for name in [name for name in tensors if name.endswith("_proj.weight") and "language_model" in name]:
            n, k = tensors[name].shape
            if kind == "nf4":
                found[name] = torch.zeros(n * k // 2, 1, dtype=torch.uint8)
                found[f"{name}.absmax"] = torch.zeros(n * k // 64)
                found[f"{name}.quant_map"] = torch.zeros(16)
                found[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(90, dtype=torch.uint8)
            else:
                found[name] = torch.zeros(n, k, dtype=torch.int8)
                found[f"{name.removesuffix('.weight')}.SCB"] = torch.zeros(n)
        return found

    plain, found = (describe(Checkpoint.open(one)) for one in (dense, rewritten(dense, tmp_path / "out", change)))
    assert {one.role: one.params for one in found.roles} == {one.role: one.params for one in plain.roles}
    assert not found.unknown
    bits = {one.role: one.bits_per_weight for one in found.roles}
    assert bits["mlp"] == pytest.approx(4.5 if kind == "nf4" else 8.3, abs=0.4)
