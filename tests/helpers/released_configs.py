"""The configs of the released Gemma 4 sizes, in the published form, and the tensors a checkpoint of them has.

`released/*.json` hold what decides names and shapes; the numbers are those of
transformers' own conversion scripts.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from g4convert.gemma4 import Architecture, Role, expected_weights, fused_experts
from g4convert.tensors import DType, TensorInfo

Config = dict[str, Any]

RELEASED = ("E2B", "E4B", "12B", "26B-A4B", "31B")
_DIRECTORY = Path(__file__).parent / "released"


def released(size: str) -> Config:
    """The config of a released size, fresh each time."""
    config: Config = json.loads((_DIRECTORY / f"{size}.json").read_text())
    return config


def small(size: str) -> Config:
    """A released config with few layers and experts; every width is kept."""
    config = released(size)
    text = config["text_config"]
    kinds = text["layer_types"]
    period = kinds.index("full_attention") + 1
    shared = 2 if text["num_kv_shared_layers"] else 0
    text |= {"num_hidden_layers": period + shared, "layer_types": kinds[: period + shared]}
    text["num_kv_shared_layers"] = shared
    if text.get("num_experts"):
        text |= {"num_experts": 3, "top_k_experts": 2}
    for part in ("vision_config", "audio_config"):
        if "num_hidden_layers" in (config[part] or {}):
            config[part]["num_hidden_layers"] = 1
    return config


def text_only(size: str) -> Config:
    """The small decoder of a released size as a checkpoint of its own, with an output head of its own."""
    return small(size)["text_config"] | {"tie_word_embeddings": False}


def assistant(size: str) -> Config:
    """An MTP drafter for a released size."""
    config = small(size)
    text = deepcopy(config["text_config"]) | {"num_kv_shared_layers": 0, "enable_moe_block": False}
    if text["model_type"] == "gemma4_text":
        text |= {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    return {
        "model_type": f"{config['model_type']}_assistant",
        "text_config": text | {"use_double_wide_mlp": False},
        "backbone_hidden_size": text["hidden_size"],
        "use_ordered_embeddings": size != "12B",
        "num_centroids": 2048,
    }


FAMILIES: Mapping[str, Config] = {
    **{size: small(size) for size in ("E2B", "12B", "26B-A4B", "31B")},
    "text": text_only("31B"),
    "unified text": text_only("12B"),
    "assistant": assistant("31B"),
    "unified assistant": assistant("12B"),
}
"""One config of every family, small enough to be resolved hundreds of times."""


def stored(architecture: Architecture, dtype: DType = DType.BF16) -> dict[str, TensorInfo]:
    """Every tensor as transformers stores it, experts fused; with the keys and values of KV-shared layers."""
    shapes = {
        name: (expected.shape, DType.I64 if expected.integer else dtype)
        for name, expected in expected_weights(architecture).items()
        if expected.role is not Role.EXPERTS
    }
    shapes |= {name: (fused.shape, dtype) for name, fused in fused_experts(architecture).items()}
    return {name: TensorInfo(name, kind, shape) for name, (shape, kind) in shapes.items()}
