"""The KL of a few rows of the head is that of the whole vocabulary: exactly for a small one, nearly for a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from g4convert.calibration.states import States
from g4convert.calibration.targets import SoftTargets
from g4convert.devices import CPU
from g4convert.forward.logits import Head

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, LENGTH = 16, 80


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(vocabulary: int, cap: float | None) -> Head:
    linear = torch.nn.Linear(HIDDEN, vocabulary, bias=False)
    linear.weight = torch.nn.Parameter(1.5 * draw(vocabulary, HIDDEN, seed=3), requires_grad=False)
    return Head(linear, linear.weight, cap, CPU)


def made(path: Path, of: Head, states: torch.Tensor) -> SoftTargets:
    targets = SoftTargets.open(States(path), of, 1, LENGTH)
    targets.make(0, states)
    return targets


def whole(of: Head, theirs: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """KL of each token over the whole vocabulary."""
    assert of.weight is not None
    logits = (theirs @ of.weight.T, mine @ of.weight.T)
    if of.cap is not None:
        logits = (of.cap * (logits[0] / of.cap).tanh(), of.cap * (logits[1] / of.cap).tanh())
    p, q = (one.log_softmax(-1) for one in logits)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_small_vocabulary_is_summed_whole(cap: float | None, tmp_path: Path) -> None:
    of, theirs = head(300, cap), draw(LENGTH, HIDDEN)
    mine = (theirs + 0.3 * draw(LENGTH, HIDDEN, seed=1)).requires_grad_()
    compared = made(tmp_path, of, theirs).compare(0, mine)
    exact = whole(of, theirs, mine)
    assert torch.allclose(compared.kl, exact, atol=1e-5)
    (slope,) = torch.autograd.grad(exact.sum(), mine)
    assert torch.allclose(compared.slope, slope, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 30.0])
def test_of_a_large_vocabulary_a_twelfth_says_nearly_the_same(cap: float | None, tmp_path: Path) -> None:
    of, theirs = head(4096, cap), 0.5 * draw(LENGTH, HIDDEN)
    mine = theirs + 0.1 * draw(LENGTH, HIDDEN, seed=1)
    targets = made(tmp_path, of, theirs)
    assert targets.ids.shape == (1, LENGTH, 320)
    left_out = 1 - targets.weights[0, :, :256].sum(-1).mean()
    assert left_out > 0.1
    compared, exact = targets.compare(0, mine), whole(of, theirs, mine)
    assert float(compared.kl.mean()) == pytest.approx(float(exact.mean()), rel=0.02)
    with torch.enable_grad():
        given = mine.clone().requires_grad_()
        (slope,) = torch.autograd.grad(whole(of, theirs, given).sum(), given)
    assert float((compared.slope - slope).norm() / slope.norm()) < 0.2


def test_the_original_itself_has_no_distance(tmp_path: Path) -> None:
    theirs = draw(LENGTH, HIDDEN)
    compared = made(tmp_path, head(4096, 30.0), theirs).compare(0, theirs)
    assert float(compared.kl.abs().max()) < 1e-5
    assert float(compared.slope.abs().max()) < 1e-4


def test_opened_again_they_are_the_same_and_the_rest_is_left(tmp_path: Path) -> None:
    of, theirs, files = head(4096, None), draw(LENGTH, HIDDEN), States(tmp_path)
    assert SoftTargets.left(files, 3) == [0, 1, 2]
    first = SoftTargets.open(files, of, 3, LENGTH)
    first.make(1, theirs)
    assert SoftTargets.left(files, 3) == [0, 2]
    again, mine = SoftTargets.open(files, of, 3, LENGTH), theirs + 0.1
    assert torch.equal(first.compare(1, mine).kl, again.compare(1, mine).kl)
    again.make(0, theirs)
    assert torch.equal(first.compare(1, mine).kl, again.compare(1, mine).kl)
    assert SoftTargets.left(files, 3) == [2]
