"""A head that is stored although the config ties it: the same values are no fault, others are one."""

from pathlib import Path

import pytest
import torch
import transformers
from helpers.rewriting import Tensors, rewritten

from g4convert.forward.models import quiet_transformers
from g4convert.inspection.engines import Asked, check
from g4convert.report import Finding, Severity


def with_head(source: Path, output: Path, *, times: float, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Store the embedding, multiplied, as a head."""

    def change(tensors: Tensors) -> Tensors:
        (table,) = (tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
        return tensors | {"lm_head.weight": (table * times).to(dtype)}

    return rewritten(source, output, change, tie_word_embeddings=True)


def heads(directory: Path) -> list[Finding]:
    return [one for one in check(Asked(directory)).report.findings if one.code == "engines.tied_head"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_same_values_are_no_fault(dtype: torch.dtype, text: Path, tmp_path: Path) -> None:
    (found,) = heads(with_head(text, tmp_path / "out", times=1, dtype=dtype))
    assert found.severity is Severity.PASS


def test_a_head_of_its_own_is_not_compared(text: Path) -> None:
    assert not heads(text)


def test_other_values_fail_since_transformers_takes_them(text: Path, tmp_path: Path) -> None:
    out = with_head(text, tmp_path / "out", times=2)
    (found,) = heads(out)
    assert (found.severity, found.subject) == (Severity.FAIL, "lm_head.weight")
    assert "tie_word_embeddings: false" in found.remedy
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.lm_head.weight, 2 * model.get_input_embeddings().weight)
