"""Checkpoints whose config groups name layers by patterns, as people publish them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.conversions import quantized

BY_LAYER: Mapping[str, str] = {"the mlp": "mlp", "mlp and experts": r"(mlp|experts\.\d+)"}
"""Modules that the patterns of a mixture of experts name."""


def by_layer(source: Path, out: Path) -> Path:
    """Convert: int4, but int8 in the third and last layer, attention in bf16."""
    quantized(source, out, method="minmax", bits={"attention": 16}, rules=[{"layers": 2, "bits": 8}])
    return out


def patterns(directory: Path, named: str) -> dict[str, Any]:
    """The section of a config that names each layer by a pattern, which towers match, too, and ignores the head alone.

    Args:
        directory: what `by_layer` wrote.
        named: key of `BY_LAYER`.
    """
    config = json.loads((directory / "config.json").read_text())
    section: dict[str, Any] = config["quantization_config"]
    layers = range(config["text_config"]["num_hidden_layers"])
    names = [rf"re:.*layers\.{layer}\.{BY_LAYER[named]}\.(gate|up|down)_proj" for layer in layers]
    groups = {group["weights"]["num_bits"]: group for group in section["config_groups"].values()}
    four, eight = groups[4] | {"targets": names[:2]}, groups[8] | {"targets": names[2:]}
    return section | {"config_groups": {"group_w4": four, "group_w8": eight}, "ignore": ["lm_head"]}
