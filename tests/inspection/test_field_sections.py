"""Keys of a quantization section that only some engines read or know."""

from pathlib import Path
from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationConfig
from helpers.checked import assert_loads_as, broken, checked, dense_out, loads, section
from helpers.rewriting import rewritten
from pydantic import ValidationError

from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError
from g4convert.inspection.fix import fix

__all__ = ["dense_out"]


@pytest.mark.parametrize(
    ("groups", "loaded"),
    [
        ({"W4A16": ["Linear"]}, {"transformers"}),
        ({"w4a16": ["Linear"]}, {"transformers"}),
        ({"W8A16": ["Linear"]}, set()),
        ({"W4A16_ASYM": ["Linear"]}, set()),
    ],
)
def test_a_preset_by_its_name_is_read_by_transformers_alone(
    groups: dict[str, Any], loaded: set[str], dense_out: Path, tmp_path: Path
) -> None:
    """The others, vLLM 0.33 and SGLang 0.5.23, ask a group for its `targets`, and a list has none."""
    said = section(dense_out) | {"config_groups": groups}
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == loaded
    if "ASYM" in "".join(groups):
        with pytest.raises(GateError, match="cannot confirm"):
            fix(out)
        return
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)


@pytest.mark.parametrize(("place", "loaded"), [("group_0", {"vllm", "sglang"}), ("weights", set())])
def test_keys_that_compressed_tensors_does_not_know(
    place: str, loaded: set[str], dense_out: Path, tmp_path: Path
) -> None:
    """All three read `weights` with its class, transformers alone the whole group."""
    said = section(dense_out)
    group = said["config_groups"]["group_0"]
    (group if place == "group_0" else group["weights"])["comment"] = "by hand"
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == loaded
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("observer", 3),
        ("observer", ["mse"]),
        ("observer_kwargs", 5),
        ("zp_dtype", "x"),
        ("scale_dtype", "x"),
        ("dynamic", "x"),
    ],
)
def test_each_argument_has_its_type(key: str, value: object, dense_out: Path, tmp_path: Path) -> None:
    said = broken(section(dense_out), **{key: value})
    out = rewritten(dense_out, tmp_path / "out", dict, quantization_config=said)
    assert set(loads(checked(out)).values()) == {Loads.NO}
    assert fix(out)
    assert_loads_as(out, dense_out)


def with_section(source: Path, out: Path, **keys: object) -> Path:
    return rewritten(source, out, dict, quantization_config=section(source) | keys)


def test_a_section_of_sparsity_stops_vllm_and_fix_drops_it(dense_out: Path, tmp_path: Path) -> None:
    sparsity = {"format": "dense", "sparsity_structure": "unstructured", "ignore": [], "targets": ["Linear"]}
    out = with_section(dense_out, tmp_path / "out", sparsity_config=sparsity)
    assert loads(checked(out)) == {"transformers": Loads.YES, "vllm": Loads.NO, "sglang": Loads.YES}
    assert fix(out)
    assert "sparsity_config" not in section(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)
    empty = with_section(dense_out, tmp_path / "empty", sparsity_config=sparsity | {"targets": []})
    assert set(loads(checked(empty)).values()) == {Loads.YES}


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
VLLM, SGLANG, ALL = {"vllm"}, {"sglang"}, {"transformers", "vllm", "sglang"}
EXTRAS: dict[str, tuple[str, object, set[str]]] = {
    "cache, a name": ("kv_cache_scheme", "fp8", set()),
    "cache, a list": ("kv_cache_scheme", [], set()),
    "cache, a number": ("kv_cache_scheme", 5, set()),
    "cache of FP8": ("kv_cache_scheme", CACHE, ALL),
    "cache of FP8, a scale for each head": ("kv_cache_scheme", CACHE | {"strategy": "attn_head"}, ALL),
    "cache of FP8, a key too many": ("kv_cache_scheme", CACHE | {"by": "hand"}, VLLM | SGLANG),
    "cache of int8": ("kv_cache_scheme", CACHE | {"type": "int"}, {"transformers", "sglang"}),
    "cache without a strategy": ("kv_cache_scheme", {"num_bits": 8, "type": "float"}, {"transformers", "sglang"}),
    "cache, empty": ("kv_cache_scheme", {}, {"transformers", "sglang"}),
    "ratio, a word": ("global_compression_ratio", "x", VLLM | SGLANG),
    "ratio": ("global_compression_ratio", 3.5, ALL),
    "transforms, a word": ("transform_config", "x", {"transformers", "sglang"}),
    "sparsity, a word": ("sparsity_config", "x", {"transformers"}),
    "sparsity without a format": ("sparsity_config", {"targets": []}, {"transformers"}),
    "sparsity of dense weights": ("sparsity_config", {"format": "dense"}, ALL),
    "transforms, none": ("transform_config", {}, ALL),
}


@pytest.mark.parametrize("case", EXTRAS)
def test_keys_beside_the_packing_are_read_as_engines_read_them(case: str, dense_out: Path, tmp_path: Path) -> None:
    key, value, loaded = EXTRAS[case]
    out = with_section(dense_out, tmp_path / "out", **{key: value})
    assert {engine for engine, one in loads(checked(out)).items() if one is not Loads.NO} == loaded
    assert ("transformers" in loaded) is reads_section(section(out))
    if loaded != ALL:
        assert fix(out)
        assert section(out).get(key) is None
        assert set(loads(checked(out)).values()) == {Loads.YES}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"type": "int"}, "num_bits 8, type 'int'"),
        ({"num_bits": 4}, "num_bits 4, type 'float'"),
        ({"strategy": "channel"}, "strategy 'channel'"),
        ({"symmetric": False}, "symmetric false"),
    ],
)
def test_the_part_of_a_cache_that_stops_vllm_is_named(
    other: dict[str, Any], said: str, dense_out: Path, tmp_path: Path
) -> None:
    found = checked(with_section(dense_out, tmp_path / "out", kv_cache_scheme=CACHE | other)).report.findings
    (told,) = (one for one in found if one.subject == "kv_cache_scheme: form")
    assert told.found == f"{said}, at which vLLM 0.33 stops"


def reads_section(said: dict[str, Any]) -> bool:
    """Return whether the class that transformers reads a section with takes it."""
    try:
        QuantizationConfig.model_validate(said)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("part", ["input_activations", "output_activations"])
@pytest.mark.parametrize("key", ["zp_dtype", "scale_dtype", "observer_kwargs", "by hand"])
def test_arguments_of_activations_are_read_as_those_of_weights(
    part: str, key: str, dense_out: Path, tmp_path: Path
) -> None:
    static = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True, "dynamic": False}
    said = section(dense_out)
    said["config_groups"]["group_0"] |= {"input_activations": static, "output_activations": static}
    assert not any(
        "refuse" in one.found for one in checked(with_section(dense_out, tmp_path / "a", **said)).report.findings
    )
    said["config_groups"]["group_0"][part] = static | {key: 5}
    out = with_section(dense_out, tmp_path / "out", **said)
    assert set(loads(checked(out)).values()) == {Loads.NO}
    assert not reads_section(section(out))


@pytest.mark.parametrize("tool", ["awq", "gptq", None])
def test_the_version_of_another_tool_is_not_kept(tool: str | None, dense_out: Path, tmp_path: Path) -> None:
    method = {} if tool is None else {"quant_method": tool}
    out = with_section(dense_out, tmp_path / "out", version="gemm", kv_cache_scheme=CACHE, ignore=[], **method)
    assert fix(out)
    assert (section(out)["version"] == "gemm") is (tool is None)
    assert (section(out)["kv_cache_scheme"] == CACHE) is (tool is None)


@pytest.mark.parametrize(
    ("location", "loaded"),
    [("input", {"vllm"}), ("q_attn", {"vllm"}), ("weight_input", {"transformers", "vllm", "sglang"})],
)
def test_vllm_alone_transforms_inputs(location: str, loaded: set[str], dense_out: Path, tmp_path: Path) -> None:
    use = {"targets": ["Linear"], "location": location, "inverse": False, "ignore": []}
    transforms = {"config_groups": {"u": {"type": "hadamard", "apply": [use]}}}
    out = with_section(dense_out, tmp_path / "out", transform_config=transforms)
    assert {engine for engine, one in loads(checked(out)).items() if one is Loads.YES} == loaded
    if len(loaded) == 1:
        with pytest.raises(GateError, match="not fixed"):
            fix(out)


def test_groups_of_a_tensor_are_no_groups_of_integers(dense_out: Path, tmp_path: Path) -> None:
    groups = {
        name: group | {"weights": group["weights"] | {"strategy": "tensor_group"}}
        for name, group in section(dense_out)["config_groups"].items()
    }
    out = with_section(dense_out, tmp_path / "out", config_groups=groups)
    assert set(loads(checked(out)).values()) == {Loads.NO}
    assert fix(out)
    assert set(loads(checked(out)).values()) == {Loads.YES}
    assert_loads_as(out, dense_out)
