"""Level `engine`: what an engine is asked, how its answers are scored, and every accident through its interface."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from helpers.conversions import quantized
from helpers.faults import PATHS, Fault, Written, failures, written
from helpers.grids import one_in
from helpers.program import Program, g4convert
from helpers.served import ModelEngine
from hypothesis import given
from hypothesis import strategies as st

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.forward.load import load
from g4convert.forward.logits import HeldLogits
from g4convert.forward.probe import Probe
from g4convert.progress import Progress
from g4convert.report import Severity
from g4convert.request import Level, Request, ServedEngine
from g4convert.verification import profiles
from g4convert.verification.engine.judge import MeasuredParity, judge_parity
from g4convert.verification.engine.level import check_engine, join_answers, run_engine, score_some_tokens
from g4convert.verification.engine.prompts import EngineRefusal, Unfilled, prompts_of
from g4convert.verification.engine.scores import AnswerSums, Parity, score_answer
from g4convert.verification.logits.kept import NOTHING, KeptProbe
from g4convert.verification.logits.scores import TopLogits, score, top_logits
from g4convert.verification.probes.suite import make_probes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.forward.models import Model
    from g4convert.report import LevelResult

__all__ = ["g4convert", "written"]  # fixtures


# ---- what an engine is asked


@pytest.fixture(scope="module")
def e2b_model(e2b: Path) -> Model:
    """A model that takes everything."""
    return load(e2b)


@pytest.fixture(scope="module")
def probes(e2b_model: Model, e2b: Path) -> dict[str, Probe]:
    """All kinds, by name."""
    return {one.name: one for one in make_probes(e2b_model, e2b, tokens=1)}


def test_rows_lose_their_padding_and_keep_what_counts(probes: dict[str, Probe], e2b_model: Model) -> None:
    for probe in probes.values():
        prompts = prompts_of(probe, e2b_model.config)
        targets = [prompt.ids[row + 1] for prompt in prompts for row in prompt.rows]
        assert targets == probe.targets.tolist(), probe.name
        ids = [id_ for prompt in prompts for id_ in prompt.ids]
        assert ids == probe.arguments["input_ids"].flatten()[probe.attended].tolist()


def test_media_stand_where_their_soft_tokens_are(probes: dict[str, Probe], e2b_model: Model) -> None:
    kinds = set()
    for probe in probes.values():
        for prompt in prompts_of(probe, e2b_model.config):
            for kind in {item.kind for item in prompt.media}:
                soft = getattr(e2b_model.config, f"{kind}_token_id")
                items = [item for item in prompt.media if item.kind == kind]
                places = [item.offset + n for item in items for n, is_soft in enumerate(item.soft) if is_soft]
                assert places == [place for place, id_ in enumerate(prompt.ids) if id_ == soft]
                kinds.add(kind)
    assert kinds == {"image", "audio", "video"}
    assert len(prompts_of(probes["images"], e2b_model.config)[0].media) == 2


def test_of_a_probe_without_an_answer_every_token_counts(probes: dict[str, Probe]) -> None:
    batch = probes["batch"]
    silent = Probe.of("x", "x", batch.arguments, torch.zeros_like(batch.response))
    rows = batch.arguments["attention_mask"].sum(-1) - 1
    assert torch.equal(score_some_tokens(silent).response.sum(-1), rows)
    assert score_some_tokens(batch) is batch


# ---- how answers are scored


def rows(seed: int, n: int = 5, vocab: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, vocab, generator=generator), torch.randint(vocab, (n,), generator=generator)


@given(st.integers(0, 1000))
def test_all_tokens_named_give_the_scores_of_logits(seed: int) -> None:
    (p, targets), (q, _) = rows(seed), rows(seed + 1)
    found, spread = score_answer(p, top_logits(q, targets, 40), targets)
    expected = score(p, q, targets)
    assert found.kl == pytest.approx(expected.kl, rel=1e-5, abs=1e-9)
    assert torch.equal(found.agrees, expected.agrees)
    away = (p.double().log_softmax(-1) - q.double().log_softmax(-1)).abs()
    assert found.difference == pytest.approx(away.amax(-1), rel=1e-5)
    assert bool((spread <= found.difference).all())
    assert bool((spread > 0).all())


@given(st.integers(0, 1000), st.integers(1, 30))
def test_some_tokens_named_give_a_lower_bound(seed: int, k: int) -> None:
    (p, targets), (q, _) = rows(seed), rows(seed + 1)
    found, _ = score_answer(p, top_logits(q, targets, k), targets)
    assert bool((found.kl <= score(p, q, targets).kl + 5e-4).all())  # tails are what float32 leaves


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_reference_itself_is_no_distance_away(seed: int, k: int) -> None:
    p, targets = rows(seed)
    found, spread = score_answer(p, top_logits(p, targets, k), targets)
    assert float(found.kl.max()) < 1e-6  # answers are float32
    assert float(found.difference.max()) < 1e-5 > float(spread.max())
    assert bool(found.agrees.all())


def test_answers_that_are_no_numbers_count_as_infinitely_far() -> None:
    p, targets = rows(0)
    answer = top_logits(p, targets, 4)
    answer.logprobs[2, 1] = math.nan
    found, spread = score_answer(p, answer, targets)
    assert found.kl.isinf().tolist() == found.difference.isinf().tolist() == spread.isinf().tolist()
    assert (~found.finite).nonzero().flatten().tolist() == [2]


def test_answers_of_several_rows_are_one() -> None:
    p, targets = rows(0)
    whole = top_logits(p, targets, 4)
    parts = [top_logits(p[place], targets[place], 4 + number) for number, place in enumerate((slice(2), slice(2, 5)))]
    found = join_answers(parts)
    assert torch.equal(found.ids, whole.ids)
    assert torch.equal(found.target_logprob, whole.target_logprob)


# ---- accidents through the engine's interface


KIND = {"position axis": "image", "eoa alias": "audio", "sliding window": "long"}


@pytest.fixture(scope="module")
def judged(written: Written) -> Callable[..., LevelResult]:
    """Level engine of a family's conversion, by a model in the engine's place that may have a fault."""
    right: dict[str, Model] = {}

    def judge(family: str, kind: str, fault: Fault | None) -> LevelResult:
        source, out = written(family)
        if family not in right:
            right[family] = load(out, packed=False)
        found = make_probes(right[family], source, kinds=("prose", kind), tokens=1)
        engine = ModelEngine(load(out))
        with torch.no_grad():
            if fault is not None:
                fault(engine.model)
        return check_engine(engine, right[family], found, progress=Progress())

    return judge


@pytest.mark.parametrize(
    ("name", "family", "fault", "kind"), one_in(3, [row[:4] for row in PATHS]), ids=[row[0] for row in PATHS]
)
def test_a_fault_of_the_engine_fails_where_it_shows(
    name: str, family: str, fault: Fault, kind: str, judged: Callable[..., LevelResult]
) -> None:
    failed = {
        subject.partition(" ")[0] for subject in failures(judged(family, kind, fault).findings)["engine.logprobs"]
    }
    assert {"all", kind} <= failed, name
    if kind in {"image", "audio"}:
        assert "prose" not in failed


@pytest.mark.parametrize(
    ("family", "kind"),
    one_in(4, sorted({(row[1], row[3]) for row in PATHS})),
    ids=lambda word: str(word).replace(" ", "-"),
)
def test_the_right_engine_passes(family: str, kind: str, judged: Callable[..., LevelResult]) -> None:
    found = judged(family, kind, None)
    bad = {Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN}
    assert not [(one.code, one.line) for one in found.findings if one.severity in bad]
    assert found.metrics["engine"]["buckets"][0]["largest"] < 1e-4


class Stubborn(ModelEngine):
    """Refuses everything, at one place or another."""

    def __init__(self, model: Model, place: str) -> None:
        super().__init__(model)
        self.place = place

    def start(self, longest: int, top: int) -> object:  # type: ignore[override]
        if self.place == "prompt":
            return super().start(longest, top)
        raise EngineRefusal("Found different quantization schemes", self.place)

    def score(self, prompt: object) -> TopLogits:
        del prompt
        raise EngineRefusal("not this", "prompt")


@pytest.fixture(scope="module")
def text_out(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest family."""
    out = tmp_path_factory.mktemp("engine") / "out"
    quantized(checkpoints("text"), out)
    return out


def test_refusals_and_missing_weights_are_failures(text_out: Path) -> None:
    model = load(text_out)
    probes = make_probes(model, text_out, kinds=("prose",), tokens=1)

    def found(engine: ModelEngine) -> dict[str, list[str]]:
        judged = check_engine(engine, model, probes, progress=Progress())
        assert not judged.metrics
        return failures(judged.findings)

    assert found(Stubborn(model, "build")) == {"engine.load": ["the engine"]}
    assert found(Stubborn(model, "prompt")) == {"engine.probes": [probe.name for probe in probes]}
    lost = (Unfilled(name="layers.0.mlp.gate_up_proj.weight_scale", share=0.5),)
    assert found(ModelEngine(model, unfilled=lost)) == {"engine.load": [lost[0].name]}


@pytest.mark.parametrize(("agrees", "severity"), [(0.955, Severity.PASS), (0.90, Severity.FAIL)])
def test_top_tokens_may_differ_by_chance(agrees: float, severity: Severity) -> None:
    """403 tokens, of which noise changes 3 %: once measured with a healthy engine."""
    tie, n = torch.tensor([0.0, 0.0, -1.0]), 403
    p = tie.expand(n, 3) + torch.tensor([1e-3, 0.0, 0.0])
    targets = torch.zeros(n, dtype=torch.int64)
    probe = Probe.of(
        "x", "prose", {"input_ids": torch.zeros(1, n + 1, dtype=torch.int64)}, torch.arange(n + 1)[None] > 0
    )

    def parity(share: float) -> Parity:
        other = p.clone()
        other[: round((1 - share) * n), 0] -= 2e-3
        sums = AnswerSums()
        sums.add(probe, KeptProbe(HeldLogits(p), NOTHING), top_logits(other, targets, 3))
        return sums.parity()

    measured = MeasuredParity(parity(agrees), {"noise": parity(0.97)})
    found = {one.code: one.severity for one in judge_parity(measured, profiles.load("parity"))}
    assert found["engine.parity.top1_agreement"] is severity


@pytest.mark.parametrize(("off", "severity"), [(2e-5, Severity.PASS), (5e-4, Severity.FAIL)])
def test_what_no_answer_shows_passes_whatever_the_floor_is(off: float, severity: Severity) -> None:
    """Mean differences of 6e-5 and 2e-3 nats, 5 and 125 times the floor; vLLM had 5e-5 and 4 times on a real model."""
    n = 100
    p = torch.tensor([2.0, 0.0, -1.0]).expand(n, 3)
    targets = torch.zeros(n, dtype=torch.int64)
    ids, answer = torch.zeros(1, n + 1, dtype=torch.int64), torch.arange(n + 1)[None] > 0
    probe = Probe.of("x", "prose", {"input_ids": ids}, answer)

    def parity(less: float) -> Parity:
        other = p.clone()
        other[:, 0] -= less / (1 - p.softmax(-1)[:, 0])  # so that its log-probability is lower by `less`
        sums = AnswerSums()
        sums.add(probe, KeptProbe(HeldLogits(p), NOTHING), top_logits(other, targets, 3))
        return sums.parity()

    found = judge_parity(MeasuredParity(parity(off), {"noise": parity(4e-6)}), profiles.load("parity"))
    assert {one.severity for one in found if one.code == "engine.logprobs"} == {severity}


def test_an_engine_in_bfloat16_has_its_floor(text_out: Path) -> None:
    """The same answers are far from float32's floor."""
    model = load(text_out, packed=False)
    half = load(text_out, packed=False, dtype="bfloat16")
    probes = make_probes(model, text_out, kinds=("prose",), tokens=1)
    judged = check_engine(ModelEngine(half, dtype="bfloat16"), model, probes, half=lambda: half, progress=Progress())
    assert not failures(judged.findings)
    strict = check_engine(ModelEngine(half), model, probes, progress=Progress())
    assert "engine.logprobs" in failures(strict.findings)


@pytest.mark.wide
def test_an_engine_whose_pictures_are_causal_is_compared_so(dense: Path) -> None:
    model, other = load(dense), load(dense)
    other.config.get_text_config().use_bidirectional_attention = None
    probes = make_probes(model, dense, kinds=("image",))
    judged = check_engine(ModelEngine(other, causal=True), model, probes, progress=Progress())
    assert not failures(judged.findings)
    assert any("pictures that see themselves" in one.found for one in judged.findings)
    assert model.config.get_text_config().use_bidirectional_attention == "vision"
    assert "engine.logprobs" in failures(check_engine(ModelEngine(other), model, probes, progress=Progress()).findings)


# ---- the command


def test_requests_for_an_engine() -> None:
    from pathlib import Path  # noqa: PLC0415 -- for a type only elsewhere

    out, python = Path("out"), Path("python")
    asked = Request(out, engine=ServedEngine.VLLM)
    assert asked.depth is Level.ENGINE
    assert Request(out, engine=ServedEngine.VLLM, dtype="bfloat16", engine_python=python).depth is Level.ENGINE
    for options, message in (
        ({"level": Level.ENGINE}, "needs an engine"),
        ({"engine_python": python}, "needs an engine"),
        ({"engine": ServedEngine.SGLANG}, "over HTTP"),
        ({"engine": ServedEngine.SGLANG, "engine_url": "http://x", "engine_python": python}, "is for vllm"),
        ({"engine": ServedEngine.VLLM, "engine_url": "http://x"}, "is for sglang"),
        ({"engine": ServedEngine.VLLM, "level": Level.LOGITS}, "--engine belongs to level engine"),
        ({"engine": ServedEngine.VLLM, "profile": "w4a16"}, "--profile belongs to level logits"),
        ({"engine_timeout": 5.0, "level": Level.STATIC}, "--engine-timeout belongs to level engine"),
    ):
        with pytest.raises(UsageError, match=message):
            Request(out, **options)  # type: ignore[arg-type]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """One line of the user's own."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Which boats lie in the old harbour?"}]}\n')
    return path


def test_the_command_runs_what_the_engine_needs(
    text_out: Path, prompts: Path, g4convert: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from contextlib import nullcontext  # noqa: PLC0415 -- for this test

    monkeypatch.setattr("g4convert.verification.engine.level.look_for_vllm", lambda _: None)
    monkeypatch.setattr(
        "g4convert.verification.engine.level.vllm", lambda *_, **__: nullcontext(ModelEngine(load(text_out)))
    )
    ran = g4convert(
        "verify", text_out, "--engine", "vllm", "--prompts", prompts, "-v", "--html", tmp_path / "page.html"
    )
    assert ran.status == 0, ran.out
    assert "times the floor" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ran.out.startswith(f"PASS {text_out}: static, engine")
    assert "engine.logprobs all" in ran.out
    assert "mean difference" in ran.out
    assert "What the engine answers" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_engine_that_is_not_there_exits_5_before_the_work(text_out: Path, g4convert: Program) -> None:
    server = ("--engine", "sglang", "--engine-url", "http://127.0.0.1:9")
    for options, remedy in ((server, "launch_server"), (("--engine", "vllm"), "--engine-python")):
        ran = g4convert("verify", text_out, *options)
        assert ran.status == EnvironmentFault.exit_code == 5
        assert remedy in ran.err
        assert "static: names" not in ran.err
    assert g4convert("verify", text_out, "--engine", "other").status == 2
    late = g4convert("verify", text_out, "--engine", "vllm", "--engine-timeout", "-3")
    assert (late.status, "timeout" in late.err) == (2, True)
    assert g4convert("quantize", text_out, "-o", text_out / "x", "--verify", "engine").status == 2


def test_a_drafter_is_not_served_alone(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext  # noqa: PLC0415 -- for this test

    monkeypatch.setattr("g4convert.verification.engine.level.vllm", lambda *_, **__: nullcontext(None))
    out = tmp_path / "out"
    quantized(checkpoints("assistant"), out)
    found = run_engine(Request(out, engine=ServedEngine.VLLM), Checkpoint.open(out), progress=Progress())
    assert [(one.code, one.severity) for one in found.findings] == [("engine.stopped", Severity.INCONCLUSIVE)]
    assert "drafter" in found.findings[0].found
