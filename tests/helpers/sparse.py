"""Checkpoints on disk with real headers and files of holes: real widths, hardly any bytes."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from g4convert.gemma4 import Architecture
from g4convert.planning.plan import Plan
from g4convert.tensors import TensorInfo
from helpers.headers import written_config
from helpers.released_configs import Config, small

VOCABULARY = 2048
Values = Mapping[str, bytes]


def little(size: str) -> Config:
    """A small config with a small vocabulary."""
    return with_little_vocabulary(small(size))


def with_little_vocabulary(config: Config) -> Config:
    """Return the config with few tokens, as far as tensors of a token each go; with the class of its model type."""
    config.setdefault("architectures", [Architecture.from_config(config).class_name])
    text = config.get("text_config", config)
    text["vocab_size"] = VOCABULARY
    if text.get("vocab_size_per_layer_input"):
        text["vocab_size_per_layer_input"] = VOCABULARY
    return config


def tensors_of(plan: Plan) -> dict[str, TensorInfo]:
    """Return the tensors that a plan would write."""
    infos = [copy.target for copy in plan.copied] + [info for step in plan.quantized for info in step.outputs]
    return {info.name: info for info in infos}


def shapes_of(plan: Plan) -> dict[str, bytes]:
    """The values of every `weight_shape`."""
    return {step.shape.name: struct.pack("<2q", *step.weight.shape) for step in plan.quantized}


def write(directory: Path, config: Mapping[str, Any], tensors: Iterable[TensorInfo], values: Values) -> Path:
    """A checkpoint of one file, with stand-ins for the files that engines need beside it.

    Args:
        directory: to be made.
        config: its config.json.
        tensors: in any order.
        values: bytes of some; the others are 0.
    """
    directory.mkdir(parents=True)
    stand_ins(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    table, end = {}, 0
    for info in tensors:
        begin, end = end, end + info.nbytes
        table[info.name] = {"dtype": info.dtype.value, "shape": [*info.shape], "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
        for name in values.keys() & table.keys():
            file.seek(8 + len(header) + table[name]["data_offsets"][0])
            file.write(values[name])
    return directory


def stand_ins(directory: Path) -> None:
    """Write files in the place of those that engines need beside the weights."""
    for name in ("tokenizer.json", "processor_config.json"):
        (directory / name).write_text("{}")
    (directory / "chat_template.jinja").write_text("")


def write_plan(directory: Path, plan: Plan, config: Mapping[str, Any]) -> Path:
    """Write the output of a plan, but for the weights."""
    return write(directory, written_config(config, plan), tensors_of(plan).values(), shapes_of(plan))
