"""The kernels in Triton's interpreter, on CPU tensors, against float64."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import interpreted
from helpers.conversions import quantized
from helpers.grids import one_in
from helpers.interpreted import Case, Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Checkpoints

BOUNDS = {"float32": 1e-6, "float16": 8e-4, "bfloat16": 6e-3}
"""Relative errors: of sums in float32; of rounding what is between the products, and the result, once each."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    process = Interpreter()
    yield process
    process.pool.shutdown()


CASES = [
    Case(t=1, h=64, i=64, block=(8, 64, 256)),
    Case(t=2, h=128, i=64, group=64, dtype="bfloat16", block=(8, 32, 128)),
    Case(t=3, h=96, i=32, dtype="float16"),
    Case(t=5, h=128, i=128, group=128, dtype="bfloat16", block=(8, 64, 64)),
    Case(t=7, h=256, i=96, block=(16, 64, 256)),
    Case(t=9, h=256, i=64, group=0, dtype="bfloat16", block=(8, 16, 256)),
    Case(t=16, h=64, i=256, group=64),
    Case(t=17, h=128, i=192, dtype="float16", group=64, block=(32, 64, 256)),
    Case(t=33, h=192, i=64, dtype="bfloat16", top_k=3, block=(32, 64, 128)),
    Case(t=40, h=64, i=64, group=0, dtype="float16", e=1, idle=0, top_k=1),
    Case(t=64, h=128, i=64, e=12, idle=7, top_k=4, block=(64, 64, 256)),
    Case(t=64, h=256, i=128, dtype="bfloat16", block=(64, 256, 64)),
    Case(t=9, h=64, i=40, group=0, block=(16, 16, 64)),  # 40 = 2.5 blocks, and one scale a row
    Case(t=6, h=128, i=64, dtype="bfloat16", scale="float32"),
    Case(t=6, h=128, i=64, dtype="float16", scale="float16"),
    Case(t=9, h=64, i=704, block=(16, 128, 512)),
    Case(t=9, h=704, i=64, dtype="bfloat16", group=64, block=(16, 128, 256)),
    Case(t=2, h=704, i=32, dtype="float16", block=(16, 128, 256)),
]


@pytest.mark.parametrize("case", one_in(9, CASES), ids=str)
def test_experts_are_those_of_float64(interpreter: Interpreter, case: Case) -> None:
    assert interpreter(interpreted.moe_error, case, 7) < BOUNDS[case.dtype]


LINEARS = [
    Case(t=1, h=64, i=64, dtype="bfloat16", block=(8, 64, 256)),
    Case(t=5, h=256, i=48, dtype="float16", block=(16, 32, 128)),  # the last block overlaps the one before
    Case(t=64, h=704, i=32, block=(32, 32, 512)),
    Case(t=20, h=128, i=192, group=128, dtype="bfloat16", block=(32, 128, 64)),
    Case(t=3, h=96, i=20, group=0, block=(16, 16, 64)),
]


@pytest.mark.parametrize(("case", "bias"), one_in(5, product(LINEARS, [False, True])), ids=str)
def test_one_expert_is_a_linear(interpreter: Interpreter, case: Case, *, bias: bool) -> None:
    assert interpreter(_linear_error, case, 7, bias) < BOUNDS[case.dtype]


def _linear_error(case: Case, seed: int, bias: bool) -> float:  # noqa: FBT001 - sent to another process
    return interpreted.linear_error(case, seed, bias=bias)


@pytest.mark.parametrize(
    "damage",
    one_in(
        4,
        [
            "nibble order",
            "gate and up swapped",
            "no offset",
            "scales one group on",
            "experts permuted",
            "shares permuted",
            "gelu",
            "silu",
        ],
    ),
)
def test_what_is_wrong_is_seen(interpreter: Interpreter, damage: str) -> None:
    assert interpreter(interpreted.damaged_error, damage, 5) > 50 * BOUNDS["float32"]


def test_what_is_right_is_not(interpreter: Interpreter) -> None:
    assert interpreter(interpreted.damaged_error, "none", 5) < BOUNDS["float32"]


@pytest.mark.full
def test_experts_may_be_in_any_order(interpreter: Interpreter) -> None:
    assert interpreter(interpreted.renumbered)


@pytest.mark.parametrize("t", one_in(2, [2, 20]))
def test_a_token_sent_to_nobody_is_zero(interpreter: Interpreter, t: int) -> None:
    assert interpreter(interpreted.nobody_chosen, t)


@settings(max_examples=10, deadline=None)
@given(
    chosen=st.lists(st.integers(-1, 6), min_size=1, max_size=70),
    block_m=st.sampled_from([2, 16]),
    fill=st.integers(0, 3),
)
def test_pairs_are_sorted_by_expert_and_padded(
    interpreter: Interpreter, chosen: list[int], block_m: int, fill: int
) -> None:
    number = 6
    pairs, experts = interpreter(interpreted.aligned, torch.tensor(chosen), number, block_m, fill)
    rows: list[tuple[int, list[int]]] = []
    for expert in range(number):
        own = [pair for pair, name in enumerate(chosen) if name == expert]
        rows += [(expert, own[first : first + block_m]) for first in range(0, len(own), block_m)]
    assert experts.tolist() == [expert for expert, _ in rows] + [-1] * (len(experts) - len(rows))
    for found, (_, own) in zip(pairs.tolist(), rows, strict=False):
        assert found == own + [len(chosen)] * (block_m - len(own))


@pytest.mark.parametrize(("group", "strides"), [(32, (1, 32)), (0, (1, 1))])
def test_scales_keep_their_values_and_shape(interpreter: Interpreter, group: int, strides: tuple[int, int]) -> None:
    assert interpreter(interpreted.scale_memory, group) == (True, strides)


@pytest.fixture(scope="module")
def packed_moe(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "moe"
    quantized(checkpoints("moe"), out)
    return out


@pytest.mark.full
def test_a_packed_model_is_the_dequantized_one(interpreter: Interpreter, packed_moe: Path) -> None:
    assert interpreter(interpreted.model_error, packed_moe) < 1e-5
