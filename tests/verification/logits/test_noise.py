"""The noise floor: worst of its sources, and noise that is seeded, of the stated size, and gone afterwards."""

import math
from pathlib import Path

import pytest
import torch

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load
from g4convert.forward.probe import Probe
from g4convert.verification import profiles
from g4convert.verification.logits.kept import KeptProbe
from g4convert.verification.logits.metrics import Comparison, Metrics
from g4convert.verification.logits.noise import EPSILON, adding_noise, floor, is_worse
from g4convert.verification.logits.parts import decoder_layers
from g4convert.verification.probes.suite import make_probes


@pytest.fixture(scope="module")
def dense_model(dense: Path) -> ModelCandidate:
    return ModelCandidate(load(dense))


@pytest.fixture(scope="module")
def prose(dense: Path, dense_model: ModelCandidate) -> Probe:
    return make_probes(dense_model.model, dense, kinds=["prose"], tokens=1)[0]


def against_itself(model: ModelCandidate, probe: Probe, epsilon: float, *, seed: int = 0) -> Metrics:
    comparison = Comparison()
    expected = KeptProbe.of(probe, model.run(probe))
    with adding_noise(list(decoder_layers(model.model).values()), epsilon, seed=seed):
        comparison.add(probe, expected, model.run(probe))
    return comparison.metrics()


def test_noise_is_seeded_and_goes_away(dense_model: ModelCandidate, prose: Probe) -> None:
    before = dense_model.run(prose).logits
    first, again, other = (against_itself(dense_model, prose, 2**-9, seed=seed) for seed in (1, 1, 2))
    assert first.values["kl_mean"] == again.values["kl_mean"] != other.values["kl_mean"]
    assert first.kl_mean == pytest.approx(other.kl_mean, rel=0.5)
    assert torch.equal(dense_model.run(prose).logits, before)


def test_noise_has_the_stated_size(dense_model: ModelCandidate, prose: Probe) -> None:
    found = against_itself(dense_model, prose, 2**-9)
    assert found.layers[0].sqnr == pytest.approx(20 * math.log10(2**9), abs=0.5)
    assert found.layers[-1].sqnr < found.layers[0].sqnr  # it adds up
    small = against_itself(dense_model, prose, 2**-12)
    assert found.kl_mean / small.kl_mean == pytest.approx(64, rel=0.3)  # KL goes with the square


def test_float32_noise_is_above_float32_rounding(dense_model: ModelCandidate, prose: Probe, dense: Path) -> None:
    wide = ModelCandidate(load(dense).double())
    exact = KeptProbe.of(prose, wide.run(prose))
    comparison = Comparison()
    comparison.add(prose, exact, dense_model.run(prose))
    rounding = comparison.metrics()
    noise = against_itself(dense_model, prose, EPSILON["float32"])
    assert rounding.kl_mean < noise.kl_mean < 1e4 * rounding.kl_mean


def test_floor_of_a_model_lets_something_be_told(dense: Path, dense_model: ModelCandidate, prose: Probe) -> None:
    rounded = ModelCandidate(load(dense, dtype="bfloat16"))
    comparison = Comparison()
    comparison.add(prose, KeptProbe.of(prose, dense_model.run(prose)), rounded.run(prose))
    sources = {"rounding": comparison.metrics(), "noise": against_itself(rounded, prose, EPSILON["bfloat16"])}
    found = floor(sources)
    assert found.values["kl_mean"] == max(metrics.kl_mean for metrics in sources.values())
    assert found.values["top1_agreement"] == min(metrics.top1_agreement for metrics in sources.values())
    assert found.values["sqnr_min"] == min(metrics.sqnr_min for metrics in sources.values())
    assert 1e-5 < found.values["kl_mean"] < profiles.load("parity").max_floor
    assert not {"tokens", "ppl", "experts_unhit"} & set(found.values)
    plain = found.to_dict()
    assert sum(plain["kl_histogram"]) == 2 * len(prose.scored)
    assert len(plain["layers"]) == 4


def test_which_of_two_values_is_worse_depends_on_the_metric() -> None:
    assert is_worse("kl_mean", 2, 1)
    assert is_worse("top1_agreement", 0.9, 1)
    assert is_worse("ppl_ratio", 0.9, 1.05)
    assert is_worse("ppl_ratio", 1.2, 0.9)
    assert not is_worse("kl_mean", math.nan, 1)


def test_a_number_beats_a_nan(dense_model: ModelCandidate, prose: Probe) -> None:
    metrics = against_itself(dense_model, prose, 2**-9)
    assert math.isnan(metrics.kl_low)  # one sequence
    assert math.isnan(floor({"one": metrics}).values["kl_low"])
    for order in ((1, 2), (2, 1)):
        sources = {str(seed): against_itself(dense_model, prose, 2**-9, seed=seed) for seed in order}
        assert floor(sources).values["kl_max"] == max(one.kl_max for one in sources.values())


def test_layers_that_hooks_see_have_the_noise(dense_model: ModelCandidate, prose: Probe) -> None:
    """Hooks of a candidate come first or later: all see what the next layer sees."""
    seen = []
    layer = next(iter(decoder_layers(dense_model.model).values()))
    handle = layer.register_forward_hook(lambda *arguments: seen.append(arguments[2].clone()))
    with adding_noise([layer], 0.1, seed=0):
        dense_model.run(prose)
    dense_model.run(prose)
    handle.remove()
    assert not torch.equal(seen[0], seen[1])
