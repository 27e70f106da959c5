"""Tensors that no engine needs: the values that they stand for are no fault, others are one."""

from pathlib import Path

import pytest
import torch
import transformers
from helpers.rewriting import Tensors, rewritten

from g4convert.forward.models import quiet_transformers
from g4convert.inspection.engines import CheckRequest, check
from g4convert.report import Finding, Severity

LAYER = "model.language_model.layers.0."


def with_head(source: Path, output: Path, *, times: float, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Store the embedding, multiplied, as a head."""

    def change(tensors: Tensors) -> Tensors:
        (table,) = (tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
        return tensors | {"lm_head.weight": (table * times).to(dtype)}

    return rewritten(source, output, change, tie_word_embeddings=True)


def heads(directory: Path) -> list[Finding]:
    return [one for one in check(CheckRequest(directory)).report.findings if one.code == "engines.tied_head"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_values_are_no_fault(dtype: torch.dtype, text: Path, tmp_path: Path) -> None:
    (found,) = heads(with_head(text, tmp_path / "out", times=1, dtype=dtype))
    assert found.severity is Severity.PASS


def test_a_head_of_its_own_is_not_compared(text: Path) -> None:
    assert not heads(text)


def test_other_values_fail_since_only_some_engines_take_them(text: Path, tmp_path: Path) -> None:
    """As transformers does, vLLM 0.33 compares the two (`model_loader/weight_tying.py`); SGLang has no such code."""
    out = with_head(text, tmp_path / "out", times=2)
    (found,) = heads(out)
    assert (found.severity, found.subject) == (Severity.FAIL, "lm_head.weight")
    assert "SGLang drops it, vLLM and transformers compute with it" in found.found
    assert "tie_word_embeddings: false" in found.remedy
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.lm_head.weight, 2 * model.get_input_embeddings().weight)


@pytest.mark.parametrize("module", ["self_attn.q_proj", "mlp.down_proj"])
@pytest.mark.parametrize(("value", "severity"), [(0.0, Severity.PASS), (0.5, Severity.FAIL)])
def test_a_bias_is_dropped_by_all_engines(
    module: str, value: float, severity: Severity, dense: Path, tmp_path: Path
) -> None:
    def biased(tensors: Tensors) -> Tensors:
        weight = tensors[f"{LAYER}{module}.weight"]
        return tensors | {f"{LAYER}{module}.bias": weight.new_full(weight.shape[:1], value)}

    judged = check(CheckRequest(rewritten(dense, tmp_path / "out", biased), tps=(1,)))
    (found,) = (one for one in judged.report.findings if one.code == "engines.bias")
    assert (found.severity, found.subject) == (severity, f"{LAYER}{module}.bias")
    assert {one.loads.value for one in judged.verdicts} == {"yes"}


def test_the_weight_of_a_norm_that_has_none_stops_vllm(dense: Path, tmp_path: Path) -> None:
    def weighted(tensors: Tensors) -> Tensors:
        return tensors | {f"{LAYER}self_attn.v_norm.weight": torch.ones(32, dtype=torch.bfloat16)}

    judged = check(CheckRequest(rewritten(dense, tmp_path / "out", weighted), tps=(1,)))
    loads = {one.engine: one.loads.value for one in judged.verdicts}
    assert loads == {"transformers": "yes", "vllm": "no", "sglang": "yes"}
    (found,) = (one for one in judged.report.findings if one.code == "static.unknown")
    assert "delete it if it is all ones" in found.remedy
