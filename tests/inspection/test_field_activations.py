"""Checkpoints that quantize activations as they come: which engine has a scheme, and what transformers makes of them.

The answers of vLLM 0.33 are those of `CompressedTensorsConfig._get_scheme_from_parts`, asked for each row.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers.rewriting import rewritten

from g4convert.engines.verdicts import Loads
from g4convert.errors import GateError
from g4convert.forward.models import model_class, quiet_transformers
from g4convert.inspection.engines import Checked, CheckRequest, check
from g4convert.inspection.fix import fix
from g4convert.report import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Packed

TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
ROWS: Mapping[str, tuple[dict[str, Any], bool]] = {
    "int8 per token": (TOKEN, True),
    "int8 per token, defaults left out": ({"strategy": "token", "dynamic": True}, True),
    "int8 per group": (TOKEN | {"strategy": "group", "group_size": 32}, True),
    "int4 per token": (TOKEN | {"num_bits": 4}, True),
    "int8 per token, asymmetric": (TOKEN | {"symmetric": False}, False),
    "int8 per tensor": (TOKEN | {"strategy": "tensor"}, False),
    "int6 per token": (TOKEN | {"num_bits": 6}, False),
    "fp8 per token": (TOKEN | {"type": "float"}, False),
}
"""Inputs, and whether vLLM 0.33 has a scheme for Linears with them."""


def with_inputs(packed: Path, out: Path, inputs: object, **more: object) -> Path:
    section = json.loads((packed / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"] |= {"input_activations": inputs, **more}
    return rewritten(packed, out, dict, quantization_config=section)


def checked(directory: Path, *engines: str) -> Checked:
    return (
        check(CheckRequest(directory, engines=engines, tps=(1,)))
        if engines
        else check(CheckRequest(directory, tps=(1,)))
    )


def loads(found: Checked) -> Mapping[str, bool]:
    return {one.engine: one.loads is not Loads.NO for one in found.verdicts}


@pytest.mark.parametrize("case", ROWS)
def test_inputs_that_are_quantized_as_they_come(case: str, packed: Packed, tmp_path: Path) -> None:
    inputs, vllm = ROWS[case]
    out = with_inputs(packed("dense"), tmp_path / "out", inputs)
    found = checked(out)
    assert loads(found) == {"transformers": True, "vllm": vllm, "sglang": False}
    severity = Severity.WARN if vllm else Severity.FAIL
    (said,) = (one for one in found.report.of(severity) if one.code == "static.scheme")
    assert "inputs quantized as they come" in said.found
    assert not any("null" in one.remedy for one in found.report.findings)


@pytest.mark.parametrize("inputs", [TOKEN | {"dynamic": False}, TOKEN | {"dynamic": "local"}, {"num_bits": 8}])
def test_inputs_without_their_scales_load_nowhere(inputs: dict[str, Any], packed: Packed, tmp_path: Path) -> None:
    assert set(loads(checked(with_inputs(packed("dense"), tmp_path / "out", inputs))).values()) == {False}


def test_outputs_beside_dynamic_inputs_load_nowhere(packed: Packed, tmp_path: Path) -> None:
    out = with_inputs(packed("dense"), tmp_path / "out", TOKEN, output_activations=TOKEN)
    assert set(loads(checked(out)).values()) == {False}


def test_experts_of_vllm_take_none(packed: Packed, tmp_path: Path) -> None:
    """Its W4A8 experts are a method for Arm CPUs."""
    assert loads(checked(with_inputs(packed("moe"), tmp_path / "out", TOKEN)))["vllm"] is False


def test_what_tensors_cannot_confirm_is_not_fixed(packed: Packed, tmp_path: Path) -> None:
    section = json.loads((packed("dense") / "config.json").read_text())["quantization_config"]
    section["config_groups"]["group_0"]["input_activations"] = TOKEN
    out = rewritten(packed("dense"), tmp_path / "out", dict, quantization_config=section | {"ignore": []})
    before = (out / "config.json").read_bytes()
    with pytest.raises(GateError):
        fix(out)
    assert (out / "config.json").read_bytes() == before


def test_transformers_rounds_inputs_itself(packed: Packed, tmp_path: Path) -> None:
    ids, found = torch.tensor([[2, 5, 7, 9, 11, 20, 30]]), []
    for inputs in (None, TOKEN, TOKEN | {"num_bits": 4}):
        out = with_inputs(packed("dense"), tmp_path / f"out{len(found)}", inputs)
        with quiet_transformers(), torch.no_grad():
            kind = json.loads((out / "config.json").read_text())["model_type"]
            model, report = model_class(kind).from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
            assert not report["missing_keys"]
            found.append(model(input_ids=ids).logits.float())
    eight, four = ((one - found[0]).abs().max() / found[0].abs().max() for one in found[1:])
    assert 0 < eight < four / 5
