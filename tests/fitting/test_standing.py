"""Losses by `gptq` that are estimated from those of `imatrix`: in layers a share of them, outside the same."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.headers import planned
from helpers.released_configs import FAMILIES
from numpy.typing import NDArray

from g4convert.api.fit import fit
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines.limits import Packing
from g4convert.fitting.choices import Form, label_form, parse_choices
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Assignment, Problem
from g4convert.fitting.standing import StandIn, look_up_share, scale_losses
from g4convert.quantization import Method

CHOICES = parse_choices(["4:32", "8:channel", "16"])
PROBLEM = Problem.of(planned(FAMILIES["31B"], bits={"embedding": 4, "lm_head": 8}), CHOICES)
TABLES = ("embed_tokens", "lm_head")
LOSSES = {part.name: {"int4 g32": 1.1 if part.name in TABLES else 1.0, "int8 per row": 0.01} for part in PROBLEM.free}


class Sum:
    """A measure by which losses add up."""

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> NDArray[np.float64]:
        """The sum on two texts, of which the second loses twice as much."""
        found = sum(LOSSES[part.name][label_form(form)] for part, form in forms if part.is_free and form is not None)
        return np.array([found, 2 * found])


@pytest.mark.wide
def test_a_fit_for_gptq_counts_what_it_loses(moe: Path, tmp_path: Path) -> None:
    """Rounded by `mse`, as the file has no statistics; whole choices and single changes count by one share."""
    vocabulary = Checkpoint.open(moe).config["text_config"]["vocab_size"]
    ids = tmp_path / "ids.safetensors"
    Tokens(np.random.default_rng(0).integers(3, vocabulary, (4, 16), np.int32)).save(ids)
    found = {
        method: fit(
            moe,
            tmp_path / f"{method}.yaml",
            target_bits=6,
            choices=["4:32", "8:channel"],
            calibration=ids,
            sensitivities=tmp_path / "kept.json",
            rows=2,
            tokens=8,
            workers=1,
            method=method,
            bits={"lm_head": 8},
        )
        for method in ("mse", "gptq")
    }
    share = look_up_share(Method.GPTQ, Method.MSE, experts=True)
    one, other = found["mse"], found["gptq"]
    assert (one.share, other.share) == (1, share)
    assert one.sensitivities == other.sensitivities
    for part in one.problem.free:
        for form in part.forms:
            counts = 1 if part.name == "lm_head" else share
            assert other.used(part, form) == pytest.approx(counts * one.used(part, form))
    whole, estimated = ({point.name: point.measured for point in each.presets} for each in (one, other))
    assert estimated["w4a16-g32"] == pytest.approx(share * whole["w4a16-g32"])
    assert share * whole["w4a16-g32-head8"] < estimated["w4a16-g32-head8"] < whole["w4a16-g32-head8"]
    assert other.to_dict()["share"] == round(share, 4)
    assert f"rounded by mse, times {share:.2f} in layers for gptq" in other.output.read_text()


def test_only_parts_of_layers_lose_less() -> None:
    four: Assignment = {part.name: Packing(4, 32) for part in PROBLEM.free}
    inside = len(four) - len(TABLES)
    for names, expected in ((four, 2.2 + 0.25 * inside), (TABLES, 2.2), ([*four][1:2], 0.25), ([], 0)):
        forms = [(part, four[part.name] if part.name in names else None) for part in PROBLEM.free]
        assert StandIn(Sum(), 0.25).losses(forms) == pytest.approx([expected, 2 * expected])


def test_tables_get_the_bits_that_layers_do_without() -> None:
    """The size has room for eight bits in the head or in layers of the same size."""
    smallest = {part.name: Packing(4, 32) for part in PROBLEM.free}
    room = PROBLEM.nbytes({**smallest, "lm_head": Packing(8, None)}) * 101 // 100
    bits = {}
    for share in (1.0, 0.001):
        chosen = PROBLEM.solve(scale_losses(LOSSES, PROBLEM.free, share)).within(room)
        bits[share] = {name: form.num_bits for name, form in chosen.items() if form is not None}
    assert {bits[1.0][name] for name in TABLES} == {4}
    assert {bits[0.001][name] for name in TABLES} == {4, 8}


def test_the_share_is_what_was_measured() -> None:
    assert look_up_share(Method.GPTQ, Method.IMATRIX, experts=False) == pytest.approx(0.31, abs=0.005)
    assert look_up_share(Method.GPTQ, Method.MSE, experts=True) == pytest.approx(0.40, abs=0.005)
    assert (
        look_up_share(Method.IMATRIX, Method.IMATRIX, experts=True)
        == look_up_share(Method.MSE, Method.MSE, experts=False)
        == 1
    )
