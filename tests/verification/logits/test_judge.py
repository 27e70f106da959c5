"""The logits level as a whole: right paths pass, what fails is named, and modes agree with one another."""

from pathlib import Path

import pytest
import torch
from helpers.captured import store
from helpers.conversions import quantized
from helpers.prompts import first_of_each

from g4convert.demo.trained import trained
from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import load
from g4convert.forward.models import cache_name
from g4convert.forward.probe import Probe
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult, Report, Severity
from g4convert.verification import profiles
from g4convert.verification.logits.capture import StoredReference
from g4convert.verification.logits.judge import check_logits
from g4convert.verification.logits.trace import Models
from g4convert.verification.probes.suite import make_probes

BAD = (Severity.FAIL, Severity.INCONCLUSIVE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained MoE and its conversion: loss means something."""
    out = tmp_path_factory.mktemp("judge") / "out"
    quantized(trained("moe"), out)
    return trained("moe"), out


@pytest.fixture(scope="module")
def original(pair: tuple[Path, Path]) -> ModelCandidate:
    return ModelCandidate(load(pair[0]))


@pytest.fixture(scope="module")
def dequantized(pair: tuple[Path, Path]) -> ModelCandidate:
    return ModelCandidate(load(pair[1], packed=False))


@pytest.fixture(scope="module")
def probes(pair: tuple[Path, Path], original: ModelCandidate) -> tuple[Probe, ...]:
    return first_of_each(make_probes(original.model, pair[0], kinds=["prose", "code", "batch", "image"], tokens=1))


def judged(models: Models, probes: tuple[Probe, ...]) -> LevelResult:
    return check_logits(
        models, probes, loss=profiles.load("w4a16"), parity=profiles.load("parity"), progress=Progress()
    )


def bad(judgement: LevelResult, *, but: str = "logits.loss.") -> dict[str, list[Finding]]:
    """Failures by check; what four bits cost a model of this size is not looked at."""
    found: dict[str, list[Finding]] = {}
    for finding in judgement.findings:
        if finding.severity in BAD and not finding.code.startswith(but):
            found.setdefault(finding.code, []).append(finding)
    return found


@pytest.fixture(scope="module")
def right(
    pair: tuple[Path, Path], original: ModelCandidate, dequantized: ModelCandidate, probes: tuple[Probe, ...]
) -> LevelResult:
    return judged(Models(original, dequantized, ModelCandidate(load(pair[1]))), probes)


def test_the_right_path_passes(right: LevelResult) -> None:
    assert bad(right) == {}
    parity, loss, floor = (right.metrics[kind] for kind in ("parity", "loss", "floor"))
    assert parity["kl_mean"] < 1e-9
    assert loss["kl_mean"] > 1e-4
    assert parity["logit_max_diff"] < 1e-3
    assert set(floor["sources"]) == {"noise"}
    assert floor["values"]["kl_mean"] < 1e-8
    checked = {finding.code for finding in right.findings}
    names = ("modules", "inputs", "activation", "embedder", "pooler", "decode", "coverage", "parity.kl_mean")
    assert {f"logits.{name}" for name in names} <= checked


@pytest.mark.wide
def test_one_probe_of_each_bucket_shows_the_floor_of_a_dense_model_in_float32() -> None:
    one, other = (ModelCandidate(load(trained("e2b"))) for _ in range(2))
    probes = make_probes(one.model, trained("e2b"), kinds=["prose"])[:2]
    found = judged(Models(None, one, other), probes).metrics
    assert len(probes) > 1
    assert found["floor"]["sources"]["noise"]["tokens"] == len(probes[0].targets)
    assert found["parity"]["tokens"] == sum(len(probe.targets) for probe in probes)
    assert 0 < found["floor"]["values"]["kl_mean"] < 1e-8


@pytest.mark.full
def test_the_original_is_its_own_twin(
    original: ModelCandidate, probes: tuple[Probe, ...], pair: tuple[Path, Path]
) -> None:
    found = judged(Models(original, original, ModelCandidate(load(pair[0]))), probes)
    assert bad(found, but="-") == {}
    for kind in ("loss", "parity"):
        assert (found.metrics[kind]["kl_max"], found.metrics[kind]["ppl_ratio"]) == (0, 1)
    assert found.metrics["blame"] == {}


def test_report_is_json(right: LevelResult) -> None:
    report = Report(right.findings, ("logits",), right.metrics, "out", "source")
    assert '"metrics_version": 1' in report.to_json()


@pytest.mark.full
def test_a_stored_reference_stands_in_for_the_original(  # noqa: PLR0913, PLR0917 -- fixtures
    right: LevelResult,
    pair: tuple[Path, Path],
    original: ModelCandidate,
    dequantized: ModelCandidate,
    probes: tuple[Probe, ...],
    tmp_path: Path,
) -> None:
    store(original, probes, tmp_path / "ref.safetensors")
    stored = StoredReference.open(tmp_path / "ref.safetensors")
    found = judged(Models(stored, dequantized, ModelCandidate(load(pair[1]))), ())
    assert bad(found) == {}
    for name in ("kl_mean", "kl_p99", "top1_agreement", "ppl_ratio", "tokens"):
        assert found.metrics["loss"][name] == pytest.approx(right.metrics["loss"][name], rel=1e-4), name
    assert found.metrics["probes"] == right.metrics["probes"]


@pytest.mark.full
def test_streamed_models_give_the_same(right: LevelResult, pair: tuple[Path, Path], probes: tuple[Probe, ...]) -> None:
    models = [
        load(pair[0], memory="stream"),
        *(load(pair[1], packed=packed, memory="stream") for packed in (False, True)),
    ]
    found = judged(Models(*map(ModelCandidate, models)), probes)
    assert bad(found) == {}
    for kind in ("loss", "parity"):
        for name, value in right.metrics[kind].items():
            if isinstance(value, float) and value == value:  # noqa: PLR0124 -- not nan
                assert found.metrics[kind][name] == pytest.approx(value, rel=1e-3, abs=1e-7), (kind, name)


@pytest.mark.wide
def test_bf16_is_judged_by_its_own_noise(
    pair: tuple[Path, Path], dequantized: ModelCandidate, probes: tuple[Probe, ...]
) -> None:
    narrow, path = (ModelCandidate(load(pair[1], dtype="bfloat16", packed=packed)) for packed in (False, True))
    found = judged(Models(None, narrow, path, dequantized), probes[:2])
    assert bad(found) == {}
    assert set(found.metrics["floor"]["sources"]) == {"noise", "rounding"}
    assert 1e-7 < found.metrics["floor"]["values"]["kl_mean"] < 0.02
    assert "loss" not in found.metrics
    path.model.get_decoder().layers[1].experts.act_fn = torch.nn.GELU()  # no logit shows it
    found = judged(Models(None, narrow, path, dequantized), probes[:1])
    assert set(bad(found)) == {"logits.activation"}


def test_a_fault_is_named_with_its_share(
    pair: tuple[Path, Path], original: ModelCandidate, dequantized: ModelCandidate, probes: tuple[Probe, ...]
) -> None:
    path = load(pair[1])
    words = path.get_decoder().layers[1].experts.gate_up_packed
    busiest = int(original.run(probes[0]).routers["layers.1"].flatten().bincount().argmax())
    words[busiest] = words[busiest].roll(words.shape[1] // 2, 0)
    found = judged(Models(original, dequantized, ModelCandidate(path)), probes[:2])
    (module,) = bad(found)["logits.modules"]
    assert module.subject == f"layers.1.experts.{busiest}"
    assert module.found.endswith("100 % of the KL")
    rows = found.metrics["blame"]["parity"]["rows"]
    assert (rows[0]["module"], round(rows[0]["share"], 2)) == (f"layers.1.experts.{busiest}", 1)
    assert "logits.parity.kl_mean" in bad(found)


@pytest.mark.wide
def test_a_cache_that_forgets_is_found(
    pair: tuple[Path, Path], dequantized: ModelCandidate, probes: tuple[Probe, ...]
) -> None:
    path = load(pair[1])
    attention = path.get_decoder().layers[0].self_attn
    stock, name = attention.forward, cache_name(path)

    def forward(*args: object, **kwargs: object) -> object:
        return stock(*args, **kwargs | {name: None})

    attention.forward = forward
    found = bad(judged(Models(None, dequantized, ModelCandidate(path)), probes[:2]))
    assert set(found) == {"logits.decode"}


def test_experts_that_no_probe_reached_are_told(
    pair: tuple[Path, Path], dequantized: ModelCandidate, probes: tuple[Probe, ...]
) -> None:
    found = judged(Models(None, dequantized, ModelCandidate(load(pair[1]))), probes[:1])
    (coverage,) = (finding for finding in found.findings if finding.code == "logits.coverage")
    hit = sum(count > 0 for router in found.metrics["parity"]["routers"] for count in router["hits"])
    total = sum(len(router["hits"]) for router in found.metrics["parity"]["routers"])
    assert coverage.found == f"{hit} of {total} reached by the probes"
    assert (coverage.severity is Severity.PASS) == (hit == total)
