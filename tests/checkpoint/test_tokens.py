"""Tokens that were added to a tokenizer, and the rows of the embedding."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.program import Program, g4convert

from g4convert.checkpoint.tokens import tokens_beyond
from g4convert.forward.models import model_class, quiet_transformers

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Packed

__all__ = ["g4convert"]  # a fixture

SAID = "tokens beyond the 512 rows of the embedding"


def with_tokens(source: Path, out: Path, *ids: int) -> Path:
    """As a trainer leaves a tokenizer that it added tokens to."""
    shutil.copytree(source, out)
    path = out / "tokenizer.json"
    content = json.loads(path.read_text())
    like = content["added_tokens"][0]
    content["added_tokens"] += [like | {"id": number, "content": f"<new{number}>"} for number in ids]
    path.write_text(json.dumps(content, indent=2))
    return out


def test_ids_without_a_row_are_counted(dense: Path, tmp_path: Path) -> None:
    assert tokens_beyond(dense, 512) == 0
    out = with_tokens(dense, tmp_path / "out", 300, 512, 600)
    more = [tokens_beyond(out, rows) - tokens_beyond(dense, rows) for rows in (10, 301, 513, 601)]
    assert more == [3, 2, 1, 0]
    for text in ("{", '{"added_tokens": [{"id": 999, "content": "a"}]}'):
        (out / "tokenizer.json").write_text(text)
        assert tokens_beyond(out, 512) == 0
    (out / "tokenizer.json").unlink()
    assert tokens_beyond(out, 512) == 0


def test_a_plan_says_so_and_what_it_names_works(dense: Path, tmp_path: Path, g4convert: Program) -> None:
    source = with_tokens(dense, tmp_path / "source", 512, 513)
    assert f"2 {SAID}" in " ".join(g4convert("plan", source).out.split())
    with quiet_transformers():
        kind = json.loads((source / "config.json").read_text())["model_type"]
        model = model_class(kind).from_pretrained(source, dtype=torch.bfloat16)
        model.resize_token_embeddings(514)
        model.save_pretrained(tmp_path / "resized")
    shutil.copy(source / "tokenizer.json", tmp_path / "resized")
    ran = g4convert("plan", tmp_path / "resized")
    assert (ran.status, "rows of the embedding" in ran.out) == (0, False), ran.err
    shutil.copy(dense / "tokenizer.json", source)
    assert "rows of the embedding" not in g4convert("plan", source).out


@pytest.mark.parametrize(("family", "warned"), [("dense", True), ("assistant", False)])
def test_a_check_warns(
    family: str,
    warned: bool,  # noqa: FBT001 -- a parameter
    packed: Packed,
    tmp_path: Path,
    g4convert: Program,
) -> None:
    """A drafter is given its target's tokenizer."""
    out = with_tokens(packed(family), tmp_path / "out", 5000)
    ran = g4convert("check", out, "-v")
    assert (ran.status, "engines fail at each" in " ".join(ran.out.split())) == (0, warned)
