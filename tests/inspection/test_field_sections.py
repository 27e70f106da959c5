"""Keys of a quantization section that only some engines read or know."""

from pathlib import Path
from typing import Any

import pytest
from helpers.checked import assert_loads_as, broken, checked, dense_out, loads, section
from helpers.rewriting import rewritten

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


@pytest.mark.parametrize("observer", [3, ["mse"]])
def test_an_observer_is_a_name(observer: object, dense_out: Path, tmp_path: Path) -> None:
    said = broken(section(dense_out), observer=observer)
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
