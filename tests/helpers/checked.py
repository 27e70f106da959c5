"""Checks a checkpoint, changes its tensors and its section, and loads it with transformers."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from g4convert.forward.models import model_class, quiet_transformers
from g4convert.inspection.engines import Checked, CheckRequest, check
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Packed

    from g4convert.engines.verdicts import Loads
    from helpers.rewriting import Tensors


@pytest.fixture(scope="session")
def dense_out(packed: Packed) -> Path:
    """A plain W4A16 of the dense model."""
    return packed("dense", method="minmax")


def loads(found: Checked) -> Mapping[str, Loads]:
    return {one.engine: one.loads for one in found.verdicts}


def checked(directory: Path) -> Checked:
    return check(CheckRequest(directory, tps=(1,)))


def codes(found: Checked) -> set[str]:
    return {one.code for one in found.report.of(Severity.FAIL)}


def section(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())["quantization_config"]
    return config


def modules(tensors: Tensors) -> list[str]:
    return [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]


def beside(part: str, tensor: torch.Tensor) -> Any:  # noqa: ANN401 -- a function of tensors
    """Adds a tensor to each packed module."""

    def change(tensors: Tensors) -> Tensors:
        return tensors | {f"{module}.{part}": tensor.clone() for module in modules(tensors)}

    return change


def loaded_values(directory: Path) -> Tensors:
    """Every tensor of the model that transformers loads, by name; nothing missing, nothing unexpected."""
    with quiet_transformers():
        kind = json.loads((directory / "config.json").read_text())["model_type"]
        model, report = model_class(kind).from_pretrained(directory, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


loaded_once = cache(loaded_values)


def assert_loads_as(directory: Path, good: Path) -> None:
    """Every value that transformers loads from a corrected checkpoint is that of a good one, which stays as it is."""
    found, expected = loaded_values(directory), loaded_once(good)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def broken(said: dict[str, Any], **weights: object) -> dict[str, Any]:
    said["config_groups"]["group_0"]["weights"] |= weights
    return said
