"""A stored reference: what is read is what was written, and judging by it gives the same numbers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.captured import store
from helpers.prompts import first_of_each
from safetensors.torch import save_file

from g4convert.errors import InputError
from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.load import load
from g4convert.forward.logits import HeldLogits
from g4convert.forward.probe import Probe
from g4convert.verification.logits import capture as capturing
from g4convert.verification.logits.capture import StoredReference
from g4convert.verification.logits.kept import KeptProbe
from g4convert.verification.logits.metrics import Comparison, Metrics
from g4convert.verification.probes.suite import digest, make_probes


@pytest.fixture(scope="module")
def reference(moe: Path) -> ModelCandidate:
    return ModelCandidate(load(moe))


@pytest.fixture(scope="module")
def probes(moe: Path, reference: ModelCandidate) -> Sequence[Probe]:
    return first_of_each(make_probes(reference.model, moe, kinds=["prose", "batch", "image"], tokens=1))


@pytest.fixture(scope="module")
def candidate(moe: Path) -> ModelCandidate:
    """The reference with some noise on its weights."""
    model = load(moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=generator))
    return ModelCandidate(model)


def judged(stored: StoredReference, candidate: ModelCandidate) -> Metrics:
    comparison = Comparison(experts=12, projection=stored.projection)
    for probe in stored.probes:
        comparison.add(probe, stored.kept[probe.name], candidate.run(probe))
    return comparison.metrics()


def judged_live(reference: ModelCandidate, candidate: ModelCandidate, probes: Sequence[Probe]) -> Metrics:
    comparison = Comparison(experts=12)
    for probe, kept in zip(probes, run_all(reference, probes, KeptProbe.of), strict=True):
        comparison.add(probe, kept, candidate.run(probe))
    return comparison.metrics()


def test_round_trip(
    reference: ModelCandidate, candidate: ModelCandidate, probes: Sequence[Probe], tmp_path: Path
) -> None:
    path = tmp_path / "ref.safetensors"
    written = store(reference, probes, path, source="abc", facts={"dtype": "float32"})
    stored = StoredReference.open(path)
    assert digest(stored.probes) == digest(probes)
    assert stored.facts == written.facts
    assert (stored.facts["source"], stored.facts["dtype"], stored.facts["metrics_version"]) == ("abc", "float32", 1)
    assert list(tmp_path.iterdir()) == [path]
    assert repr(judged(stored, candidate)) == repr(judged(written, candidate))  # there is a nan
    live, found = judged_live(reference, candidate, probes), judged(stored, candidate)
    assert not found.lower_bound
    exact = ("kl_mean", "kl_p99", "kl_high", "top1_agreement", "rms_dp", "ppl_ratio", "logit_cosine", "logit_max_diff")
    assert {name: found.values[name] for name in exact} == {name: live.values[name] for name in exact}
    assert found.routers == live.routers
    assert [layer.name for layer in found.layers] == [f"layers.{number}" for number in range(3)]
    for one, other in zip(found.layers, live.layers, strict=True):
        assert (one.name, one.sqnr) == (other.name, pytest.approx(other.sqnr, abs=1))


def test_layers_stay_in_order(tmp_path: Path) -> None:
    """A file sorts names: layers.10 before layers.9."""
    probe = Probe.of("one", "prose", {"input_ids": torch.arange(8)[None]}, torch.arange(8)[None] > 3)

    class Deep:
        model = None

        def run(self, _: object) -> ProbeOutputs:
            return ProbeOutputs(
                HeldLogits(torch.randn(4, 20)), layers={f"layers.{number}": torch.ones(8, 4) for number in range(12)}
            )

    store(Deep(), [probe], tmp_path / "ref")
    assert list(StoredReference.open(tmp_path / "ref").kept["one"].states.layers) == [f"layers.{n}" for n in range(12)]


def test_its_own_reference_is_exact(reference: ModelCandidate, probes: Sequence[Probe], tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    store(reference, probes, path)
    found = judged(StoredReference.open(path), reference)
    assert (found.kl_max, found.rms_dp, found.logit_max_diff, found.ppl_ratio) == (0, 0, 0, 1)
    assert found.sqnr_min == float("inf")
    assert found.router_jaccard_min == 1


def test_of_a_large_vocabulary_the_likeliest_tokens_are_kept(
    reference: ModelCandidate,
    candidate: ModelCandidate,
    probes: Sequence[Probe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(reference, probes, tmp_path / "full.safetensors")
    monkeypatch.setattr(capturing, "FULL_VOCABULARY", 100)
    monkeypatch.setattr(capturing, "TOP", 64)
    path = tmp_path / "top.safetensors"
    store(reference, probes, path)
    full, found = (
        judged(StoredReference.open(tmp_path / f"{kind}.safetensors"), candidate) for kind in ("full", "top")
    )
    assert found.lower_bound
    assert 0.3 * full.kl_mean < found.kl_mean < full.kl_mean
    assert found.top1_agreement == full.top1_agreement
    assert found.ppl_ratio == pytest.approx(full.ppl_ratio, rel=1e-5)
    assert found.rms_dp == pytest.approx(full.rms_dp, rel=1e-4)
    assert found.logit_max_diff < 1.1 * full.logit_max_diff
    assert path.stat().st_size < (tmp_path / "full.safetensors").stat().st_size
    same = judged(StoredReference.open(path), reference)
    assert same.kl_max < 1e-6
    assert same.top1_agreement == 1


def test_arguments_of_any_nesting(checkpoints: object, tmp_path: Path) -> None:
    directory = checkpoints("assistant")
    model = ModelCandidate(load(directory))
    probes = make_probes(model.model, directory)
    store(model, probes, tmp_path / "draft.safetensors")
    (stored,) = StoredReference.open(tmp_path / "draft.safetensors").probes
    states, expected = stored.arguments["shared_kv_states"], probes[0].arguments["shared_kv_states"]
    assert states.keys() == expected.keys()
    assert all(torch.equal(a, b) for kind in states for a, b in zip(states[kind], expected[kind], strict=True))
    assert torch.allclose(model.run(stored).logits, model.run(probes[0]).logits, atol=1e-4)


def test_of_a_streamed_model_the_same(
    reference: ModelCandidate, probes: Sequence[Probe], moe: Path, tmp_path: Path
) -> None:
    for name, model in {"a": reference, "b": ModelCandidate(load(moe, memory="stream"))}.items():
        store(model, probes, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_files_are_refused(reference: ModelCandidate, probes: Sequence[Probe], tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        StoredReference.open(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="cannot be read"):
        StoredReference.open(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a stored reference"):
        StoredReference.open(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"g4convert_reference": '{"metrics_version": 0}'})
    with pytest.raises(InputError, match="metrics version 0, expected 1"):
        StoredReference.open(path)
    store(reference, probes[:1], path)
    assert len(StoredReference.open(path).probes) == 1  # what was there is replaced
