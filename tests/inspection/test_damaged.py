"""Tensors that are lost, too many or in another form: what `check` says by engine, and what no config can mend."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from helpers import sparse
from helpers.configs import LAYER, TEXT, Tensors, damaged, exit_code, fixed, judged, loads, lose, read, state, without
from helpers.headers import planned

from g4convert.engines.remarks import Topic
from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError, UnsupportedError
from g4convert.inspection.fix import fix
from g4convert.report import Severity
from g4convert.tensors import DType, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def as_packed(module: str, shape: tuple[int, int], group_size: int = 32) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        infos.pop(f"{module}.weight", None)
        n, k = shape
        for name, dtype, sizes in (
            ("weight_packed", DType.I32, (n, k // 8)),
            ("weight_scale", DType.BF16, (n, k // group_size)),
        ):
            infos[f"{module}.{name}"] = TensorInfo(f"{module}.{name}", dtype, sizes)

    return change


def as_plain(module: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    def change(infos: Tensors) -> None:
        lose(*(f"{module}.weight_{part}" for part in ("packed", "scale", "shape")))(infos)
        infos[f"{module}.weight"] = TensorInfo(f"{module}.weight", DType.BF16, shape)

    return change


def added(name: str, *shape: int, dtype: DType = DType.BF16) -> Callable[[Tensors], None]:
    return lambda infos: infos.update({name: TensorInfo(name, dtype, shape)})


def renamed(infos: Tensors) -> None:
    name = f"{TEXT}.norm.weight"
    infos["language_model.model.norm.weight"] = replace(infos.pop(name), name="language_model.model.norm.weight")


# size, what is done to the tensors, engine -> topic of its problem (None: that engine loads it)
DAMAGED: Mapping[str, tuple[str, Callable[[Tensors], None], Mapping[str, Topic | None]]] = {
    "a norm is lost": (
        "31B",
        lose(f"{LAYER}.input_layernorm.weight"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "a scale is lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_scale"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "words are lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_packed"),
        dict.fromkeys(("vllm", "sglang", "transformers"), Topic.MISSING),
    ),
    "an expert is lost": (
        "26B-A4B",
        lose(*(f"{LAYER}.experts.1.up_proj.weight_{part}" for part in ("packed", "scale", "shape"))),
        {"vllm": Topic.MISSING},
    ),
    "a shape is lost": (
        "31B",
        lose(f"{LAYER}.mlp.up_proj.weight_shape"),
        {"vllm": None, "sglang": None, "transformers": Topic.STORED},
    ),
    "a tensor too many": (
        "31B",
        added(f"{LAYER}.mlp.gate_proj.extra", 21504),
        {"vllm": Topic.UNKNOWN, "sglang": None, "transformers": None},
    ),
    "a v_proj where values are keys": (
        "31B",
        added(f"{TEXT}.layers.5.self_attn.v_proj.weight", 2048, 5376),
        {"vllm": Topic.UNKNOWN, "sglang": None},
    ),
    "the router packed": ("26B-A4B", as_packed(f"{LAYER}.router.proj", (3, 2816)), {"vllm": Topic.REFUSED}),
    "a projection of images packed": (
        "26B-A4B",
        as_packed("model.embed_vision.embedding_projection", (2816, 1152)),
        {"vllm": Topic.REFUSED},
    ),
    "patch_dense packed": (
        "12B",
        as_packed("model.vision_embedder.patch_dense", (3840, 6912)),
        {"sglang": Topic.REFUSED},
    ),
    "half of a fused module plain": (
        "31B",
        as_plain(f"{LAYER}.mlp.gate_proj", (21504, 5376)),
        {"vllm": Topic.FORM, "sglang": Topic.FORM},
    ),
    "zero points": (
        "31B",
        lambda infos: [
            added(f"{name[:-13]}weight_zero_point", *infos[name].shape, dtype=DType.I32)(infos)
            for name in [*infos]
            if name.endswith("weight_packed")
        ],
        {},
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tensors_are_told_by_engine_and_not_fixed(name: str, tmp_path: Path) -> None:
    size, change, wanted = DAMAGED[name]
    directory = damaged(tmp_path / "out", size, change)
    for engine, topic in wanted.items():
        (verdict,) = judged(directory, engine, tps=(1,)).verdicts
        topics = {one.topic for one in verdict.problems}
        assert topic in topics if topic else not topics, [one.line for one in verdict.problems]
    without("lm_head")(config := read(directory))  # something to mend, besides
    (directory / "config.json").write_text(json.dumps(config))
    files = state(directory)
    with pytest.raises(GateError) as error:
        fix(directory)
    assert error.value.offenders
    assert state(directory) == files


@pytest.mark.parametrize("size", ["31B", "26B-A4B"])
def test_layers_that_were_left_out_of_a_role_get_an_entry(size: str, tmp_path: Path) -> None:
    """Other programs leave out the first and the last layer."""
    plan = planned(sparse.little(size))
    kept = [
        step
        for step in plan.quantized
        if f"{LAYER}." in step.packed.name or (".layers.5.mlp." in step.packed.name and size == "31B")
    ]

    def change(infos: Tensors) -> None:
        for step in kept:
            as_plain(step.weight.module, step.weight.shape)(infos)

    directory = damaged(tmp_path / "out", size, change)
    assert loads(judged(directory))["vllm"] is Loads.NO
    assert fixed(directory).kept == directory / "config.json.orig"
    assert loads(judged(directory))["vllm"] is Loads.YES
    ignored = read(directory)["quantization_config"]["ignore"]
    wanted = {
        "31B": {
            r"re:.*language_model.*layers\.(0)\.self_attn\..*",
            r"re:.*language_model.*layers\.(0|5)\.mlp\..*",
        },
        "26B-A4B": {
            r"re:.*language_model.*layers\.(0)\.self_attn\..*",
            r"re:.*language_model.*layers\.(0)\.mlp\..*",
            r"re:.*language_model.*layers\.(0)\.(moe\.)?experts.*",
        },
    }
    assert wanted[size] <= {*ignored}
    assert not [
        one
        for one in judged(directory).report.findings
        if one.code == "static.ignore" and one.severity is not Severity.PASS
    ]
    assert fix(directory) is None


def test_a_weight_in_groups_of_another_size_gets_a_group_of_its_own(tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", as_packed(f"{LAYER}.mlp.down_proj", (5376, 21504), 64))
    assert loads(judged(directory))["vllm"] is Loads.NO
    assert fixed(directory)
    groups = read(directory)["quantization_config"]["config_groups"]
    assert [group["weights"]["group_size"] for group in groups.values()] == [32, 64]
    assert groups["group_1"]["targets"] == [r"re:.*language_model.*layers\.(0)\.mlp\.down_proj.*"]
    assert {loads(judged(directory))[engine] for engine in ("vllm", "sglang")} == {Loads.YES}


def test_other_formats_have_other_rules(tmp_path: Path) -> None:
    def change(infos: Tensors) -> None:
        as_plain(f"{LAYER}.mlp.up_proj", (21504, 5376))(infos)
        lose(f"{LAYER}.mlp.up_proj.weight")(infos)
        added(f"{LAYER}.mlp.up_proj.qweight", 672, 21504, dtype=DType.I32)(infos)
        added(f"{LAYER}.mlp.up_proj.scales", 42, 21504)(infos)

    with pytest.raises(UnsupportedError, match="gptq"):
        judged(damaged(tmp_path / "out", "31B", change))


def test_what_stays_uninitialised_is_said_in_the_engines_way(tmp_path: Path) -> None:
    directory = damaged(tmp_path / "out", "31B", lose(f"{LAYER}.layer_scalar"))
    texts = {one.engine: one.problems[0].line for one in judged(directory, tps=(1,)).verdicts}
    assert texts["vllm"] == f"{LAYER}.layer_scalar: lost: uninitialised memory, without a word"
    assert texts["sglang"].endswith("uninitialised memory, with a warning in the log")
    assert texts["transformers"].endswith("random numbers, with a warning in the log")


def test_names_of_another_program_are_read_by_some_engines(tmp_path: Path) -> None:
    found = judged(damaged(tmp_path / "out", "31B", renamed), tps=(1,))
    assert {engine for engine, one in loads(found).items() if one is not Loads.NO} == {"vllm"}
    assert exit_code(found) == 0
    assert any(one.code == "static.names" for one in found.report.of(Severity.WARN))
