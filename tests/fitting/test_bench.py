"""Measured losses: those of the written checkpoint, from any layer on, on a part of the vocabulary."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Checkpoints
from helpers.conversions import quantized
from helpers.grids import one_in

from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.result import MethodChoice
from g4convert.engines.limits import Packing
from g4convert.errors import InputError
from g4convert.fitting import divergence
from g4convert.fitting.bench import Bench
from g4convert.fitting.choices import parse_choices
from g4convert.fitting.divergence import Divergence
from g4convert.fitting.problem import Assignment, Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.writing import make_values
from g4convert.forward.load import load
from g4convert.forward.logits import Head
from g4convert.forward.models import Model
from g4convert.planning.recipe_files import load as recipe
from g4convert.planning.steps import make_plan
from g4convert.quantization import Method

CASES: Mapping[str, dict[str, Any]] = {
    "e2b": {"bits": {"ple_projection": 4, "ple_embedding": 8, "embedding": 4, "lm_head": 8}},
    "unified": {"bits": {"lm_head": 8}, "layout": "text-only"},
    "moe": {"kv_shared": "keep"},
    "text": {"bits": {"embedding": 8, "lm_head": 4}},
}
CHOICES = (Packing(4, 16), *parse_choices(["4:32", "8:channel", "16"]))


@dataclass(frozen=True, slots=True)
class Made:
    """A tiny model on a bench."""

    source: Path
    problem: Problem
    bench: Bench


@pytest.fixture(scope="module", params=one_in(2, CASES))
def made(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Iterator[Made]:
    source = checkpoints(request.param)
    checkpoint = Checkpoint.open(source)
    plan = make_plan(checkpoint, recipe(options={"method": "mse", **CASES[request.param]}).recipe)
    model = load(checkpoint, decoder_only=True)
    vocabulary = plan.architecture.text.vocab_size
    ids = np.random.default_rng(0).integers(3, vocabulary, (2, 12), np.int32)
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "_LIKELIEST", vocabulary)  # nothing is drawn: losses are exact
        rounder = Rounder(MethodChoice(Method.MSE, ""), plan.inventory.architecture, pool)
        yield Made(source, Problem.of(plan, CHOICES), Bench.of(model, ids, rounder))


def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits[:, 1:].flatten(0, 1).double()
    return found


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def chosen(problem: Problem, seed: int) -> Assignment:
    order = np.random.default_rng(seed)
    return {part.name: part.forms[order.integers(len(part.forms))] for part in problem.parts}


def test_the_loss_is_that_of_the_written_checkpoint(made: Made, tmp_path: Path) -> None:
    assignment = chosen(made.problem, 1)
    quantized(made.source, tmp_path / "out", **make_values(made.problem, assignment))
    written = load(tmp_path / "out", packed=False, decoder_only=True)
    exact = kl(logits(made.bench.model, made.bench.ids), logits(written, made.bench.ids))
    found = made.bench.losses((part, assignment[part.name]) for part in made.problem.parts).mean()
    assert found == pytest.approx(exact, rel=1e-3)
    assert found > 1e-5


def test_a_weight_that_is_not_finite_is_named(made: Made) -> None:
    weight = next(one for one in made.problem.plan.inventory.weights if one.linear)
    values = torch.full(weight.shape, float("inf"))
    with pytest.raises(InputError, match=f"{re.escape(weight.name)}: a weight is NaN or infinite"):
        made.bench.rounder.round_weight(weight, values, made.problem.free[0].forms[0])


def test_a_change_costs_the_same_whatever_runs_again(made: Made) -> None:
    """Layers before it hand on what they gave, keys and values for later ones too."""
    whole = logits(made.bench.model, made.bench.ids)
    for part in made.problem.free:
        form = part.forms[0]
        found = made.bench.losses([(part, form)]).mean()
        if part.role == "lm_head":
            continue
        with made.bench._replace_weights(part, form):  # noqa: SLF001 -- what is put is the same, what runs is all
            exact = kl(whole, logits(made.bench.model, made.bench.ids))
        assert found == pytest.approx(exact, rel=2e-3, abs=1e-9), part.name


def test_a_model_is_put_back(made: Made) -> None:
    before = {name: value.clone() for name, value in made.bench.model.state_dict().items()}
    made.bench.losses((part, part.forms[0]) for part in made.problem.parts)
    after = made.bench.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not made.bench.losses([]).any()
    assert not made.bench.losses((part, None) for part in made.problem.parts).any()


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_part_of_the_vocabulary_tells_the_loss(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 4000, bias=False)
    head, states = Head(linear, linear.weight.detach() * 4, cap, torch.device("cpu")), torch.randn(200, 16)
    other = states + 0.05 * torch.randn(200, 16)

    def full(x: torch.Tensor) -> torch.Tensor:
        raw = (x @ (linear.weight.detach() * 4).T).double()
        return raw if cap is None else torch.tanh(raw / cap) * cap

    exact = kl(full(states), full(other))
    found = Divergence.of(head, states)
    assert torch.equal(found.kl(states), torch.zeros(200, dtype=torch.float64))
    assert float(found.kl(other).mean()) == pytest.approx(exact, rel=0.05)
    assert float(found.kl(other).min()) > 0
    assert kl(full(states), full(-states)) * 0.7 < float(found.kl(-states).mean()) < kl(full(states), full(-states))
    monkeypatch.setattr(divergence, "_LIKELIEST", 4000)
    assert float(Divergence.of(head, states).kl(-states).mean()) == pytest.approx(kl(full(states), full(-states)))
    assert float(Divergence.of(head, states).kl(other).mean()) == pytest.approx(exact, rel=1e-4)
