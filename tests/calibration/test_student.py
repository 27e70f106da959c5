"""A student answers as the packed checkpoint does, its slopes are true, and its scales go back where they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.conversions import quantized, stored
from helpers.grids import one_in

from g4convert.calibration.student import Student
from g4convert.forward.load import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Checkpoints

IDS = np.random.default_rng(0).integers(5, 250, 24, dtype=np.int32)


@pytest.fixture(scope="module", params=one_in(2, ["moe", "e2b"]))
def packed(request: pytest.FixtureRequest, checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every structure: experts, keys that are values; per-layer inputs, shared keys and values."""
    output = tmp_path_factory.mktemp("packed") / "out"
    quantized(checkpoints(str(request.param)), output)
    return output


def scales(directory: Path) -> Mapping[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in stored(directory).items()
        if name.endswith(".weight_scale") and name.startswith("model.language_model.layers.")
    }


def opened(directory: Path) -> Student:
    return Student.open(directory, scales(directory).keys())


def test_untrained_it_is_the_packed_model(packed: Path) -> None:
    ids = torch.from_numpy(IDS.astype(np.int64))[None]
    with torch.no_grad():
        plain = load(packed, decoder_only=True).get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        assert torch.allclose(opened(packed).states(IDS), plain, atol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_untrained_or_at_no_part_of_the_way_scales_are_stored_as_they_were(packed: Path, share: float) -> None:
    student, before = opened(packed), scales(packed)
    for log in student.logs:
        log.data.fill_(1 - share)
    student.go(share)
    after = student.stored()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_part_of_the_way_is_a_part_of_the_logarithm(packed: Path) -> None:
    student, before = opened(packed), scales(packed)
    for log in student.logs:
        log.data.fill_(0.1)
    student.go(0.5)
    after = student.stored()
    ratios = torch.cat([(after[name].float() / before[name].float()).flatten() for name in after])
    assert torch.allclose(ratios.log(), torch.tensor(0.05), atol=2**-8)


def test_only_logs_are_trained(packed: Path) -> None:
    student = opened(packed)
    trained = {id(log) for log in student.logs}
    assert {id(one) for one in student.model.parameters() if one.requires_grad} == trained


def test_a_step_along_the_slope_gains_what_the_slope_says(packed: Path) -> None:
    """One derivative for all scales of each weight at once, in steps too small to route tokens to other experts."""
    student = opened(packed)
    goal = torch.randn(len(IDS), student.states(IDS).shape[1], generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad((student.states(IDS) * goal).sum(), student.logs, allow_unused=True)
    reached = [(log, slope) for log, slope in zip(student.logs, slopes, strict=True) if slope is not None]
    for log, slope in reached[:: max(1, len(reached) // 12)]:
        step = 0.05 / float(slope.square().sum())
        found = [_along(student, goal, log, slope, sign * step) for sign in (1, -1)]
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(float(slope.square().sum()), rel=0.1)


def _along(student: Student, goal: torch.Tensor, log: torch.Tensor, slope: torch.Tensor, step: float) -> float:
    with torch.no_grad():
        log.add_(slope, alpha=step)
        found = float((student.states(IDS).double() * goal).sum())
        log.sub_(slope, alpha=step)
    return found
