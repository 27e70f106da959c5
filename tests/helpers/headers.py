"""Checkpoints that are headers only: real layouts of any size, without a byte of weights."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from g4convert.checkpoint.beside import Beside
from g4convert.checkpoint.directory import Checkpoint, StoredTensor
from g4convert.gemma4 import Architecture
from g4convert.planning.config import make_output_config, make_quantization_config
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import load
from g4convert.planning.steps import make_plan
from g4convert.planning.weights import make_planned_weights
from g4convert.tensors import TensorInfo
from helpers.released_configs import stored

BESIDE = ("chat_template.jinja", "processor_config.json", "tokenizer.json")
"""Files that engines need beside the weights, by name alone."""


def opened(config: Mapping[str, Any], tensors: Iterable[TensorInfo] | None = None) -> Checkpoint:
    """A checkpoint of one file as if it had been opened; by default every tensor the config implies."""
    if tensors is None:
        tensors = stored(Architecture.from_config(config)).values()
    places, position = {}, 0
    for info in tensors:
        places[info.name] = StoredTensor(info, "model.safetensors", position)
        position += info.nbytes
    return Checkpoint(Path("model"), config, b"", places, (), Beside(BESIDE, (), ()))


def planned(config: Mapping[str, Any], recipe: str = "w4a16-g32", **options: object) -> Plan:
    """The plan of a headers-only checkpoint; those of the released sizes are asked for again and again."""
    return _planned(json.dumps([config, options]), recipe)


@cache
def _planned(said: str, recipe: str) -> Plan:
    config, options = json.loads(said)
    return make_plan(opened(config), load(recipe, options).recipe)


def section(plan: Plan) -> dict[str, Any]:
    """The `quantization_config` of a plan's output."""
    return make_quantization_config(make_planned_weights(plan))


def written_config(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The config.json of a plan's output, from that of its source."""
    return make_output_config(config, plan, make_planned_weights(plan))
