"""Tiny checkpoints of every Gemma 4 family, with the structure of the released ones.

The demo, the tests and users' CI need a checkpoint that other tools accept: made by the transformers
classes, saved by `save_pretrained` in several shards, with tokenizer, chat template, generation and
processor config. Real downloads are 5 to 60 GB; these are about 1 to 7 MB and are made in a second.

What is kept from the released models, because it decides names, shapes and refusals:

    moe                 26B-A4B   experts beside a dense MLP, full layers without v_proj, vision tower with
                                  std_bias/std_scale; 192 = 1.5 x 128 plays 704 and 2112 = 5.5 and 16.5 x 128,
                                  vision MLP 80 = 16 x 5 plays 4304, which no group size divides
    dense               31B       full layers without v_proj, the same vision tower; every decoder
                                  in_features is a multiple of 128
    unified             12B       patch embedder in place of towers, its names renamed on disk
    e2b                 E2B/E4B   per-layer embeddings, KV-shared layers with double-wide MLP, vision and
                                  audio towers with clip limits
    text, unified_text            Gemma4ForCausalLM (with an lm_head of its own), Gemma4UnifiedForCausalLM
    assistant, unified_assistant  MTP drafters, the first with ordered embeddings

The published repositories spell the wide heads of full-attention layers `global_head_dim`; transformers
saves the same fact as `per_layer_config`. The four composite families are written the published way, the
others as saved, so that both are read in every test run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from g4convert.demo.tokenizer import TOKEN_IDS, VOCAB_SIZE, write_processor, write_tokenizer
from g4convert.demo.weights import fill
from g4convert.errors import UsageError
from g4convert.forward.load import DTYPES
from g4convert.forward.models import Config, Model, constructing, model_class, quiet_transformers
from g4convert.gemma4.family import Family
from g4convert.suggestions import no_such

_SLIDING, _FULL = "sliding_attention", "full_attention"

_TEXT: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size": 128,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 32,
    "global_head_dim": 64,
    "attention_k_eq_v": True,
    "sliding_window": 16,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}
_MOE: Mapping[str, Any] = {
    **_TEXT,
    "enable_moe_block": True,
    "num_experts": 12,
    "top_k_experts": 3,
    "moe_intermediate_size": 192,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "layer_types": [_SLIDING, _SLIDING, _FULL],
}
_E2B_TEXT: Mapping[str, Any] = {
    **_TEXT,
    "hidden_size_per_layer_input": 128,
    "num_hidden_layers": 6,
    "layer_types": [_SLIDING, _SLIDING, _FULL] * 2,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "use_bidirectional_attention": None,
}
_VISION: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "patch_size": 4,
    "pooling_kernel_size": 3,
    "position_embedding_size": 256,
    "use_clipped_linears": False,
    "standardize": True,
    "default_output_length": 70,  # soft tokens of a picture, for the processor and for vLLM: 280 in released ones
}
_E2B_VISION = {**_VISION, "intermediate_size": 128, "use_clipped_linears": True, "standardize": False}
_AUDIO: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "output_proj_dims": 96,
    # The first entry is also the number of mel bins: the tower folds (bins / 4) * second into one axis.
    "subsampling_conv_channels": [32, 16],
    "use_clipped_linears": True,
}
_UNIFIED_VISION: Mapping[str, Any] = {
    "patch_size": 8,
    "pooling_kernel_size": 2,
    "mm_embed_dim": 128,
    "output_proj_dims": 128,
    "mm_posemb_size": 128,
    "num_soft_tokens": 70,  # the same under another name
}
_UNIFIED_AUDIO: Mapping[str, Any] = {"audio_embed_dim": 256}
_PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "text_config": {"hidden_size_per_layer_input": 0},
    "vision_config": {"model_patch_size": _UNIFIED_VISION["patch_size"] * _UNIFIED_VISION["pooling_kernel_size"]},
    "audio_config": {"output_proj_dims": _UNIFIED_AUDIO["audio_embed_dim"]},
}
"""Keys of the released unified config that transformers does not save, and SGLang reads."""
_NO_MOE_KEYS = ("vocab_size_per_layer_input", "hidden_size_per_layer_input")
_UNIFIED_TEXT = {key: value for key, value in _TEXT.items() if key not in _NO_MOE_KEYS}
_DRAFT_TEXT = {
    **_TEXT,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": _TEXT["num_hidden_layers"],
    "use_bidirectional_attention": None,
}
_UNIFIED_DRAFT_TEXT = {key: value for key, value in _DRAFT_TEXT.items() if key not in _NO_MOE_KEYS}
_MULTIMODAL_IDS = {
    "boi_token_id": TOKEN_IDS["<|image>"],
    "eoi_token_id": TOKEN_IDS["<image|>"],
    "image_token_id": TOKEN_IDS["<|image|>"],
    "video_token_id": TOKEN_IDS["<|video|>"],
    "boa_token_id": TOKEN_IDS["<|audio>"],
    "eoa_token_index": TOKEN_IDS["<audio|>"],
    "audio_token_id": TOKEN_IDS["<|audio|>"],
    "eos_token_id": [TOKEN_IDS["<eos>"], TOKEN_IDS["<turn|>"]],
}

_CONFIGS: Mapping[Family, Mapping[str, Any]] = {
    Family.MOE: {
        "model_type": "gemma4",
        "text_config": _MOE,
        "vision_config": _VISION,
        "audio_config": None,
        **_MULTIMODAL_IDS,
    },
    Family.DENSE: {
        "model_type": "gemma4",
        "text_config": _TEXT,
        "vision_config": _VISION,
        "audio_config": None,
        **_MULTIMODAL_IDS,
    },
    Family.UNIFIED: {
        "model_type": "gemma4_unified",
        "text_config": _UNIFIED_TEXT,
        "vision_config": _UNIFIED_VISION,
        "audio_config": _UNIFIED_AUDIO,
        **_MULTIMODAL_IDS,
    },
    Family.E2B: {
        "model_type": "gemma4",
        "text_config": _E2B_TEXT,
        "vision_config": _E2B_VISION,
        "audio_config": _AUDIO,
        **_MULTIMODAL_IDS,
    },
    Family.TEXT: {
        **_TEXT,
        "model_type": "gemma4_text",
        "attention_k_eq_v": False,
        "tie_word_embeddings": False,
        "use_bidirectional_attention": None,
    },
    Family.UNIFIED_TEXT: {**_UNIFIED_TEXT, "model_type": "gemma4_unified_text"},
    Family.ASSISTANT: {
        "model_type": "gemma4_assistant",
        "text_config": {**_DRAFT_TEXT, "model_type": "gemma4_text"},
        "backbone_hidden_size": 128,
        "use_ordered_embeddings": True,
        "num_centroids": 32,
        "centroid_intermediate_top_k": 8,
    },
    Family.UNIFIED_ASSISTANT: {
        "model_type": "gemma4_unified_assistant",
        "text_config": {**_UNIFIED_DRAFT_TEXT, "model_type": "gemma4_unified_text"},
        "backbone_hidden_size": 128,
    },
}

# Stands for the key that Google's QAT exports carry beside bf16 weights: no `quant_method`, so it is no
# scheme that a loader could apply. Its keys here are made up; only the missing one is a fact.
_QAT_CONFIG = {"weights": {"num_bits": 4, "group_size": 32, "type": "q4_0"}}


def make(  # noqa: PLR0913 -- a family, a place, and what may vary
    family: Family,
    directory: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    max_shard_size: str = "500KB",
    qat: bool = False,
) -> Path:
    """Write a tiny checkpoint of one family.

    Args:
        family: family of the checkpoint.
        directory: path of the result; made when missing, must be empty.
        seed: seed of the weights; the same arguments give the same bytes.
        dtype: `bfloat16`, `float16` or `float32`, of every floating-point tensor.
        max_shard_size: as `save_pretrained` reads it; the default gives every family several shards.
        qat: put the decoder's Linears on a Q4_0 lattice, as in Google's QAT exports, and add the
            `quantization_config` without `quant_method` that those carry.

    Returns:
        The directory.

    Raises:
        UsageError: the directory is not empty, or the dtype is another one.
        EnvironmentFault: this release of transformers cannot build the family (5.23.0: assistants).
    """
    if dtype not in DTYPES:
        raise no_such("dtype", dtype, DTYPES)
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty", hint="name a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    spec = dict(_CONFIGS[family])
    with quiet_transformers():
        config = AutoConfig.for_model(spec.pop("model_type"), **spec)
        model = _build(config)
        fill(model, seed=seed, dtype=DTYPES[dtype], qat=qat)
        model.generation_config = GenerationConfig(
            bos_token_id=TOKEN_IDS["<bos>"],
            pad_token_id=TOKEN_IDS["<pad>"],
            eos_token_id=[TOKEN_IDS["<eos>"], TOKEN_IDS["<turn|>"]],
            do_sample=True,
            top_k=64,
            top_p=0.95,
        )
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    _rewrite_config(directory / "config.json", _CONFIGS[family], qat=qat)
    write_tokenizer(directory)
    write_processor(directory, _CONFIGS[family])
    return directory


def _build(config: Config) -> Model:
    """Build the model on the meta device: no memory, no initialisation; every stored tensor is assigned later."""
    with constructing(config.model_type), torch.device("meta"):
        return model_class(config.model_type)(config)


def _rewrite_config(path: Path, spec: Mapping[str, Any], *, qat: bool) -> None:
    """Spell composite configs as the published ones; add the QAT key."""
    config = json.loads(path.read_text())
    if "vision_config" in spec:
        text = config["text_config"]
        text.pop("per_layer_config", None)
        for key in ("global_head_dim", "num_global_key_value_heads"):
            text[key] = spec["text_config"][key]
    if spec["model_type"] == "gemma4_unified":
        for section, keys in _PUBLISHED.items():
            config[section] |= keys
    if qat:
        config["quantization_config"] = _QAT_CONFIG
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
