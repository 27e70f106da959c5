"""Tensors that do not fit a config, and the hint of the refusal."""

from collections.abc import Mapping
from copy import deepcopy

import pytest

from g4convert.errors import InputError
from g4convert.gemma4 import Architecture, resolve
from g4convert.tensors import TensorInfo
from helpers.released_configs import Config, stored

Tensors = Mapping[str, TensorInfo]


def tensors_of(config: Config) -> dict[str, TensorInfo]:
    return stored(Architecture.from_config(config))


def hint(tensors: Tensors, config: Config) -> str:
    with pytest.raises(InputError) as caught:
        resolve(tensors, Architecture.from_config(config), config=config)
    return caught.value.hint


def fits(tensors: Tensors, config: Config, *, decoder_only: bool = False) -> bool:
    resolve(tensors, Architecture.from_config(config), config=config, decoder_only=decoder_only)
    return True


def with_text(config: Config, **values: object) -> Config:
    changed = deepcopy(config)
    changed.get("text_config", changed).update(values)
    return changed


def without(tensors: Tensors, *parts: str) -> dict[str, TensorInfo]:
    return {name: info for name, info in tensors.items() if not any(part in name for part in parts)}
