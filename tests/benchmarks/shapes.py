"""Checkpoints with the names, shapes and config keys of released Gemma 4 models: what the benchmarks run on.

    26b-2l   2 layers of 26B-A4B with all 128 experts           3.6 GB
    31b-3l   3 layers of 31B                                    3.5 GB
    26b      all 30 layers of 26B-A4B, headers only: two sparse files of 26 GB apparent size, for `plan`

Depth, vision depth and vocabulary are cut in the first two and nothing else. Weights are N(0, 0.02) in
bf16, the same in every run: one random block, written again and again from another start and with other low
mantissa bits, so that no two rows are alike and generating costs little more than writing.

    python tests/benchmarks/shapes.py 26b-2l DIR [--one-shard]
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MODELS", "Model", "make", "output_bytes", "packed_numel"]

Shapes = dict[str, tuple[int, ...]]

ITEMSIZE = 2  # bytes; everything is bf16
BLOCK = 1 << 24  # elements of the random block
CHUNK = 1 << 22  # elements written at once
NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes that set one checkpoint apart from another.

    Args:
        hidden: hidden_size.
        mlp: intermediate_size of the dense MLP.
        heads: attention heads; key/value heads of sliding layers; key/value heads of full layers.
        moe: experts and their intermediate size, or None for a dense model.
        layers: per layer, whether its attention is full.
        vision_layers: layers of the vision tower.
        vocabulary: rows of the embedding.
        shard_bytes: largest shard; a single tensor may exceed it.
        sparse: write headers only, the weights being holes in the files.
    """

    hidden: int
    mlp: int
    heads: tuple[int, int, int]
    moe: tuple[int, int] | None
    layers: tuple[bool, ...]
    vision_layers: int = 2
    vocabulary: int = 32_768
    shard_bytes: int = 900_000_000
    sparse: bool = False


_26B = {"hidden": 2816, "mlp": 2112, "heads": (16, 8, 2), "moe": (128, 704)}
MODELS = {
    "26b-2l": Model(**_26B, layers=(False, True)),
    "31b-3l": Model(hidden=5376, mlp=21504, heads=(32, 16, 4), moe=None, layers=(False, False, True)),
    "26b": Model(
        **_26B,
        layers=(False, False, False, False, False, True) * 5,
        vision_layers=27,
        vocabulary=262_144,
        shard_bytes=26_000_000_000,
        sparse=True,
    ),
}


def make(model: Model, directory: Path, *, one_shard: bool = False) -> Path:
    """Write a checkpoint, unless the directory already holds it.

    Args:
        model: one of `MODELS`.
        directory: path of the result; created.
        one_shard: everything in one file with no index.

    Returns:
        The directory.
    """
    done = directory / "config.json"  # written last
    if done.is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    shards = [tensor_shapes(model)] if one_shard else list(_shards(model))
    names = ["model.safetensors"]
    if not one_shard:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        weight_map = {name: file for file, shapes in zip(names, shards, strict=True) for name in shapes}
        index = {"metadata": {"total_size": source_bytes(model)}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    noise = _noise(BLOCK)
    for number, (file, shapes) in enumerate(zip(names, shards, strict=True)):
        _write(directory / file, shapes, None if model.sparse else noise, seed=number)
    (directory / "generation_config.json").write_text('{"do_sample": true, "top_k": 64, "top_p": 0.95}\n')
    done.write_text(json.dumps(_config(model), indent=2))
    return directory


def source_bytes(model: Model) -> int:
    """Bytes of all tensors."""
    return sum(prod(shape) for shape in tensor_shapes(model).values()) * ITEMSIZE


def packed_numel(model: Model) -> int:
    """Weights that W4A16 packs: attention, MLP and experts of the decoder."""
    parts = (".self_attn.", ".mlp.", ".experts.")
    return sum(
        prod(shape)
        for name, shape in tensor_shapes(model).items()
        if ".language_model.layers." in name and any(p in name for p in parts) and len(shape) > 1
    )


def output_bytes(model: Model) -> int:
    """Bytes of the W4A16 result: half a byte a weight and a bf16 scale for each 32, the rest as it was."""
    packed = packed_numel(model)
    return source_bytes(model) - packed * ITEMSIZE + packed // 2 + packed // 32 * 2


def tensor_shapes(model: Model) -> Shapes:
    """Every stored tensor's name and shape, in module order."""
    hidden, text = model.hidden, "model.language_model"
    shapes = {f"{text}.embed_tokens.weight": (model.vocabulary, hidden), f"{text}.norm.weight": (hidden,)}
    for number, full in enumerate(model.layers):
        layer = _attention(model, full=full) | _mlp(hidden, model.mlp, "mlp.{}_proj.weight")
        layer |= {f"{norm}_layernorm.weight": (hidden,) for norm in NORMS} | {"layer_scalar": (1,)}
        layer |= _moe(hidden, *model.moe) if model.moe else {}
        shapes |= {f"{text}.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes | _vision(hidden, model.vision_layers)


def _attention(model: Model, *, full: bool) -> Shapes:
    heads, sliding_kv, full_kv = model.heads
    size, kv = (512, full_kv) if full else (256, sliding_kv)
    shapes = {f"self_attn.{p}_proj.weight": (kv * size, model.hidden) for p in ("k" if full else "kv")}
    shapes |= {f"self_attn.{p}_norm.weight": (size,) for p in "qk"}
    shapes["self_attn.q_proj.weight"] = (heads * size, model.hidden)
    shapes["self_attn.o_proj.weight"] = (model.hidden, heads * size)
    return shapes


def _mlp(hidden: int, mlp: int, name: str) -> Shapes:
    up, down = (mlp, hidden), (hidden, mlp)
    return {name.format("gate"): up, name.format("up"): up, name.format("down"): down}


def _moe(hidden: int, experts: int, mlp: int) -> Shapes:
    norms = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    return {f"{norm}.weight": (hidden,) for norm in norms} | {
        "router.proj.weight": (experts, hidden),
        "router.scale": (hidden,),
        "router.per_expert_scale": (experts,),
        "experts.gate_up_proj": (experts, 2 * mlp, hidden),
        "experts.down_proj": (experts, hidden, mlp),
    }


def _vision(hidden: int, layers: int, width: int = 1152) -> Shapes:
    tower = "model.vision_tower"
    shapes: Shapes = {
        f"{tower}.std_bias": (width,),
        f"{tower}.std_scale": (width,),
        f"{tower}.patch_embedder.position_embedding_table": (2, 10_240, width),
        f"{tower}.patch_embedder.input_proj.weight": (width, 768),
        "model.embed_vision.embedding_projection.weight": (hidden, width),
    }
    layer = {f"self_attn.{p}_proj.linear.weight": (width, width) for p in "qkvo"}
    layer |= {f"self_attn.{p}_norm.weight": (72,) for p in "qk"}
    layer |= _mlp(width, 4304, "mlp.{}_proj.linear.weight")
    layer |= {f"{norm}_layernorm.weight": (width,) for norm in NORMS}
    for number in range(layers):
        shapes |= {f"{tower}.encoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def _config(model: Model) -> dict[str, Any]:
    """Return the config as published: `global_head_dim`, not `per_layer_config` as transformers saves it."""
    experts, moe_mlp = model.moe or (None, None)
    heads, sliding_kv, full_kv = model.heads
    text = {
        "model_type": "gemma4_text", "dtype": "bfloat16", "vocab_size": model.vocabulary,
        "hidden_size": model.hidden, "intermediate_size": model.mlp, "num_hidden_layers": len(model.layers),
        "layer_types": ["full_attention" if full else "sliding_attention" for full in model.layers],
        "num_attention_heads": heads, "num_key_value_heads": sliding_kv,
        "num_global_key_value_heads": full_kv, "head_dim": 256, "global_head_dim": 512,
        "attention_k_eq_v": True, "attention_bias": False,
        "enable_moe_block": model.moe is not None, "num_experts": experts, "moe_intermediate_size": moe_mlp,
        "top_k_experts": 8 if model.moe else None, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 262_144, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-6,
        "sliding_window": 1024, "max_position_embeddings": 262_144, "use_bidirectional_attention": "vision",
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 1152, "intermediate_size": 4304, "head_dim": 72,
        "num_hidden_layers": model.vision_layers, "num_attention_heads": 16, "num_key_value_heads": 16,
        "patch_size": 16, "pooling_kernel_size": 3, "position_embedding_size": 10_240,
        "use_clipped_linears": False, "standardize": True,
    }  # fmt: skip
    return {
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "dtype": "bfloat16",
        "tie_word_embeddings": True, "image_token_id": 258_880, "boi_token_id": 255_999,
        "eoi_token_id": 258_882, "eos_token_id": [1, 106], "text_config": text, "vision_config": vision,
        "audio_config": None,
    }  # fmt: skip


def _shards(model: Model) -> Iterator[Shapes]:
    """Yield runs of tensors of at most `shard_bytes`, each at least one tensor."""
    shard: Shapes = {}
    size = 0
    for name, shape in tensor_shapes(model).items():
        nbytes = prod(shape) * ITEMSIZE
        if shard and size + nbytes > model.shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def _noise(numel: int) -> np.ndarray:
    """Return bf16 bits of N(0, 0.02), truncated: uint16 [numel]."""
    values = np.random.default_rng(0).standard_normal(numel, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write(file: Path, shapes: Shapes, noise: np.ndarray | None, *, seed: int) -> None:
    """Write one safetensors file: names sorted as the library writes them; no noise means a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + prod(shape) * ITEMSIZE
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        if noise is None:
            out.truncate(out.tell() + end)
            return
        rng = np.random.default_rng(seed + 1)
        for begin in range(0, end // ITEMSIZE, CHUNK):
            count = min(CHUNK, end // ITEMSIZE - begin)
            start = int(rng.integers(BLOCK - CHUNK))
            mask = np.uint16(rng.integers(1, 16) | rng.integers(2) << 15)  # sign and 4 low mantissa bits
            out.write(noise[start : start + count] ^ mask)


def main() -> None:
    """Write the named checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--one-shard", action="store_true", help="one big file and no index")
    args = parser.parse_args()
    make(MODELS[args.model], args.directory, one_shard=args.one_shard)


if __name__ == "__main__":
    main()
