"""Outputs of other programs in 2, 3, 5, 6 and 7 bits: their values are judged as those of 4 and 8 bits are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.grids import one_in
from helpers.other_bits import in_bits, with_gaps
from helpers.program import g4convert
from helpers.rewriting import Tensors, rewritten

from g4convert.checkpoint.directory import Checkpoint
from g4convert.forward import pieces
from g4convert.inspection.engines import CheckRequest, check
from g4convert.report import Severity
from g4convert.verification.weights.level import check_weights

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints, Packed
    from helpers.program import Program

    from g4convert.report import Finding

__all__ = ["g4convert"]  # a fixture

ODD = (2, 3, 5, 6, 7)
BAD = {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}


def bad(out: Path, source: Path) -> list[Finding]:
    found = check_weights(Checkpoint.open(out), Checkpoint.open(source), workers=1)
    return [one for one in found if one.severity in BAD]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", ODD)
@pytest.mark.parametrize("family", one_in(2, ["dense", "moe"]))
def test_sound_values_pass(  # noqa: PLR0913 -- fixtures
    family: str, bits: int, *, symmetric: bool, checkpoints: Checkpoints, packed: Packed, tmp_path: Path
) -> None:
    out = in_bits(
        checkpoints(family), packed(family, num_bits=8, method="minmax"), tmp_path / "out", bits, symmetric=symmetric
    )
    assert bad(out, checkpoints(family)) == []


@pytest.mark.parametrize("bits", ODD)
def test_a_changed_word_is_named(bits: int, dense: Path, packed: Packed, tmp_path: Path) -> None:
    whole = in_bits(dense, packed("dense", num_bits=8, method="minmax"), tmp_path / "whole", bits)
    name = "model.language_model.layers.0.mlp.down_proj"

    def change(tensors: Tensors) -> Tensors:
        tensors[f"{name}.weight_packed"][::2] ^= 0x5A5A5A5A
        return tensors

    out = rewritten(whole, tmp_path / "out", change)
    assert name in {one.subject for one in bad(out, dense)}


def test_an_older_compressed_tensors_is_no_fault_of_the_file(
    dense: Path, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, g4convert: Program
) -> None:
    out = in_bits(dense, packed("dense", num_bits=8, method="minmax"), tmp_path / "out", 6)
    monkeypatch.setattr("compressed_tensors.compressors.pack_quantized.helpers.pack_to_int32", lambda w, _: w[:, ::5])
    pieces.check_words.cache_clear()
    ran = g4convert("verify", out, "--reference", dense)
    pieces.check_words.cache_clear()
    assert ran.status == 5
    assert "reads 6-bit words in another way than vLLM" in ran.err


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_with_gaps_are_said_to_have_them(bits: int, dense: Path, packed: Packed, tmp_path: Path) -> None:
    whole = in_bits(dense, packed("dense", num_bits=8, method="minmax"), tmp_path / "whole", bits)
    found = check(CheckRequest(with_gaps(whole, tmp_path / "out", bits), tps=(1,))).report.of(Severity.FAIL)
    told = [one for one in found if one.code == "static.packed"]
    assert told
    assert all("compressed-tensors before 0.18" in one.found and "0.18 or newer" in one.remedy for one in told)


def test_what_check_names_next_ends_well(dense: Path, packed: Packed, tmp_path: Path, g4convert: Program) -> None:
    out = in_bits(dense, packed("dense", num_bits=8, method="minmax"), tmp_path / "out", 6)
    assert "g4convert generate" in g4convert("check", out, "--engine", "transformers").out
    assert g4convert("generate", out, "-p", "Why?", "--max-new-tokens", 3).status == 0
