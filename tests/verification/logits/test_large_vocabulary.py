"""The released vocabulary of 262,144 entries: logits are made and compared piece by piece, never all at once."""

import re
from pathlib import Path

import pytest
import torch
from helpers.program import Program, brief, g4convert
from helpers.rewriting import Tensors, rewritten

from g4convert.demo import Family, make
from g4convert.forward import logits

__all__ = ["brief", "g4convert"]  # fixtures

VOCABULARY = 262_144
EMBEDDING = "embed_tokens.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied text model with the released number of entries."""
    root = tmp_path_factory.mktemp("vocabulary")

    def widened(tensors: Tensors) -> Tensors:
        name = next(name for name in tensors if name.endswith(EMBEDDING))
        few = tensors[name]
        more = torch.randn(VOCABULARY - len(few), few.shape[1]).to(few) * few.float().std().to(few)
        return {**tensors, name: torch.cat([few, more])}

    return rewritten(make(Family.UNIFIED_TEXT, root / "few"), root / "many", widened, vocab_size=VOCABULARY)


@pytest.mark.full
@pytest.mark.usefixtures("brief")
def test_verify_passes_and_makes_a_piece_of_logits_at_a_time(
    source: Path, tmp_path: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    multiply = logits._multiply_cached  # noqa: SLF001 -- where rows of logits are made

    def counted(weight: torch.Tensor, given: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        made.extend(out.shape for _, out in given)
        multiply(weight, given)

    monkeypatch.setattr(logits, "_multiply_cached", counted)
    monkeypatch.setattr(logits, "PIECE", 4 * VOCABULARY)
    assert g4convert("quantize", source, "-o", tmp_path / "out", "--verify", "none").status == 0
    ran = g4convert("verify", tmp_path / "out", "--reference", source, "--level", "logits", "--profile", "parity")
    assert ran.status == 0, ran.out
    assert re.search(r"mean KL \(nats\) +0 .*\n +95 % interval +0 to 0 ", ran.out)
    assert len(made) > 3
    assert max(made) == (4, VOCABULARY)
