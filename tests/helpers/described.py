"""Tiny checkpoints as others write them, and what is described of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g4convert.checkpoint.directory import Checkpoint
from g4convert.gemma4 import Architecture, expected_weights, fused_experts
from g4convert.inspection.describe import describe
from g4convert.inspection.description import Description
from helpers.stored import Stored, write_checkpoint, zeros

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
