"""Merged experts below `moe`, as SGLang names its own: which engine reads them.

SGLang 0.5.23 (`gemma4_causal.py`, `load_weights`): a name that holds `.moe.experts.` is kept as it is, and
`experts.gate_up_proj` becomes `experts.w13_weight`, cut into gate and up for each expert. A packed one fits no
parameter, and is left aside with a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.conversions import quantized
from helpers.rewriting import rewritten

from g4convert.engines.verdicts import Loads
from g4convert.inspection.engines import CheckRequest, check

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def loads(directory: Path) -> Mapping[str, bool]:
    found = check(CheckRequest(directory, tps=(1,)))
    return {one.engine: one.loads is not Loads.NO for one in found.verdicts}


def below_moe(source: Path, out: Path) -> Path:
    return rewritten(source, out, lambda t: {n.replace(".experts.", ".moe.experts."): w for n, w in t.items()})


def test_merged_experts_that_are_kept(moe: Path, tmp_path: Path) -> None:
    quantized(moe, tmp_path / "kept", method="minmax", pack=["attention", "mlp"])
    assert loads(tmp_path / "kept")["sglang"]
    assert loads(below_moe(tmp_path / "kept", tmp_path / "below")) == {
        "transformers": False, "vllm": False, "sglang": True,
    }  # fmt: skip
