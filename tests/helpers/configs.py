"""Quantized checkpoints without values, and copies of them with another config or other tensors, for `check`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from g4convert.inspection.engines import Checked, CheckRequest, check
from g4convert.inspection.fix import Fixed, fix
from g4convert.tensors import TensorInfo
from helpers import sparse
from helpers.headers import planned, written_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from g4convert.engines.verdicts import Loads


Config = dict[str, Any]
TEXT = "model.language_model"
LAYER = f"{TEXT}.layers.0"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Undamaged quantized checkpoints by size; copy before changing one."""
    root = tmp_path_factory.mktemp("good")

    def get(size: str) -> Path:
        if not (root / size).exists():
            config = sparse.little(size)
            sparse.write_plan(root / size, planned(config), config)
        return root / size

    return get


@pytest.fixture
def copied(good: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy with another config; weights are links, so that nothing large is copied."""

    def get(size: str, change: Callable[[Config], object] = lambda _: None) -> Path:
        source, directory = good(size), tmp_path / size
        directory.mkdir()
        sparse.stand_ins(directory)
        (directory / "model.safetensors").hardlink_to(source / "model.safetensors")
        config = read(source)
        change(config)
        (directory / "config.json").write_text(json.dumps(config, indent=2))
        return directory

    return get


def read(directory: Path) -> Config:
    config: Config = json.loads((directory / "config.json").read_text())
    return config


def state(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir()}


def judged(directory: Path, *engines: str, tps: tuple[int, ...] = ()) -> Checked:
    return check(CheckRequest.of(directory, engines, tps))


def fixed(directory: Path) -> Fixed:
    made = fix(directory)
    assert made is not None
    return made


def exit_code(found: Checked) -> int:
    return found.report.exit_code(strict=False)


def loads(found: Checked, tp: int = 1) -> dict[str, Loads]:
    return {one.engine: one.loads for one in found.verdicts if one.tp == tp}


def ignoring(change: Callable[[list[str]], list[str]]) -> Callable[[Config], None]:
    def changed(config: Config) -> None:
        section = config["quantization_config"]
        section["ignore"] = change(section["ignore"])

    return changed


def without(part: str, *instead: str) -> Callable[[Config], None]:
    return ignoring(lambda entries: [*(entry for entry in entries if part not in entry), *instead])


def scheme(**values: object) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(values)


def left_out(*keys: str) -> Callable[[Config], None]:
    def changed(config: Config) -> None:
        weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
        for key in keys:
            del weights[key]

    return changed


def whole_group(**values: object) -> Callable[[Config], None]:
    return lambda config: config["quantization_config"]["config_groups"]["group_0"].update(values)


def renamed_section(config: Config) -> None:
    config["compression_config"] = config.pop("quantization_config")


Tensors = dict[str, TensorInfo]


def lose(*names: str) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        for name in names:
            del infos[name]

    return change


def damaged(directory: Path, size: str, change: Callable[[Tensors], object]) -> Path:
    config = sparse.little(size)
    plan = planned(config)
    infos = sparse.tensors_of(plan)
    change(infos)
    return sparse.write(directory, written_config(config, plan), infos.values(), sparse.shapes_of(plan))
