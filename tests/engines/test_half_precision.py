"""Models in float16: SGLang scales the values of pictures in that dtype, in which large ones overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.headers import planned
from helpers.judged import CAVEAT, DENSE_PARTS, YES, verdict
from helpers.program import g4convert
from helpers.released_configs import small

from g4convert.planning.weights import make_planned_weights

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints
    from helpers.program import Program

    from g4convert.engines.verdicts import Loads

__all__ = ["g4convert"]  # a fixture


def judged(size: str, dtype: object, engine: str = "sglang", **options: object) -> tuple[Loads, list[str]]:
    config = small(size) | {"dtype": dtype}
    found = verdict(make_planned_weights(planned(config, **{**DENSE_PARTS, **options})), engine, 1)
    return found.loads, [one.line for one in found.caveats]


@pytest.mark.parametrize("size", ["26B-A4B", "31B", "E2B"])
def test_a_tower_in_float16_has_a_caveat_in_sglang(size: str) -> None:
    loads, (line,) = judged(size, "float16")
    assert loads is CAVEAT
    assert line.startswith("vision_tower: pictures are scaled in float16")
    assert "--dtype bfloat16" in line
    assert judged(size, "bfloat16") == (YES, [])


def test_others_scale_in_float32_or_have_no_tower() -> None:
    assert judged("31B", "float16", "vllm") == (YES, [])
    assert judged("31B", "float16", "transformers") == (YES, [])
    assert judged("12B", "float16") == (YES, [])


def test_plan_and_check_say_so_with_the_command(checkpoints: Checkpoints, tmp_path: Path, g4convert: Program) -> None:
    source = checkpoints("dense", dtype="float16")
    assert "float16" in g4convert("plan", source).out.partition("SGLang 0.5.23")[2]
    g4convert("quantize", source, "-o", tmp_path / "out", "-q")
    ran = g4convert("check", tmp_path / "out", "--engine", "sglang")
    assert ran.status == 0
    assert "pictures are scaled in float16" in " ".join(ran.out.split())
    assert "sglang.launch_server" in ran.out
    assert "--dtype bfloat16" in ran.out.partition("sglang.launch_server")[2]
