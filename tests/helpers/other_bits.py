"""Copies of an int8 checkpoint in other widths, as compressed-tensors packs them; g4convert itself writes 4 and 8."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from helpers.conversions import stored
from helpers.rewriting import Tensors, rewritten

if TYPE_CHECKING:
    from pathlib import Path


def in_bits(source: Path, eight: Path, out: Path, bits: int, *, symmetric: bool = True) -> Path:
    """Round the weights of a source to codes of other bits, in the groups of its int8 checkpoint."""
    section = json.loads((eight / "config.json").read_text())["quantization_config"]
    for group in section["config_groups"].values():
        group["weights"] |= {"num_bits": bits, "symmetric": symmetric}
    weights = stored(source)

    def change(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for name in tensors:
            if name.endswith(".weight_packed"):
                module = name.removesuffix(".weight_packed")
                groups = tensors[f"{module}.weight_scale"].shape[1]
                found |= _rounded(module, _weight(weights, module), groups, bits, symmetric=symmetric)
        return found

    return rewritten(eight, out, change, quantization_config=section)


def _weight(weights: Tensors, module: str) -> torch.Tensor:
    if f"{module}.weight" in weights:
        return weights[f"{module}.weight"].float()
    owner, number, part = module.rsplit(".", 2)
    if part == "down_proj":
        return weights[f"{owner}.down_proj"][int(number)].float()
    return weights[f"{owner}.gate_up_proj"][int(number)].float().chunk(2)[part == "up_proj"]


def _rounded(module: str, weight: torch.Tensor, groups: int, bits: int, *, symmetric: bool) -> Tensors:
    values, half = weight.view(len(weight), groups, -1), 1 << (bits - 1)
    low, high = values.amin(-1), values.amax(-1)
    scale = (values.abs().amax(-1) / (half - 0.5) if symmetric else (high - low) / (2 * half - 1)).bfloat16()
    step = scale.float()
    point = torch.zeros_like(step) if symmetric else (-half - low / step).round().clamp(-half, half - 1)
    codes = (values / step[..., None] + point[..., None]).round().clamp(-half, half - 1)
    found = {"packed": pack_to_int32(codes.view(weight.shape).to(torch.int8), bits), "scale": scale}
    if not symmetric:
        found["zero_point"] = pack_to_int32(point.to(torch.int8), bits, packed_dim=0)
    return {f"{module}.weight_{part}": tensor for part, tensor in found.items()}


def with_gaps(dense: Path, out: Path, bits: int) -> Path:
    """Pack the codes as compressed-tensors before 0.18 did: as many as fit into a word, and the rest of it empty."""

    def change(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for name, words in tensors.items():
            if name.endswith(".weight_packed"):
                shape = torch.Size(tensors[name.replace("_packed", "_shape")].tolist())
                codes = unpack_from_int32(words, bits, shape).long() + (1 << (bits - 1))
                each = 32 // bits
                codes = torch.nn.functional.pad(codes, (0, -shape[1] % each)).view(shape[0], -1, each)
                wide = (codes << bits * torch.arange(each)).sum(-1)
                found[name] = torch.where(wide >= 1 << 31, wide - (1 << 32), wide).to(torch.int32)
        return found

    return rewritten(dense, out, change)
