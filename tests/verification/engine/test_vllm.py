"""vLLM's side of level `engine`: the child process, with a fake vLLM in its interpreter that has the same interface."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import ROOT, TESTS
from helpers.answers import question
from helpers.conversions import quantized
from helpers.damage import config, damaged, lose, rewrite
from helpers.prompts import first_of_each
from helpers.served import logits_of
from safetensors.torch import save_file

from g4convert.errors import EnvironmentFault
from g4convert.forward.load import load
from g4convert.progress import Progress
from g4convert.report import Finding, Severity
from g4convert.verification.engine.level import check_engine, score_some_tokens
from g4convert.verification.engine.prompts import EngineRefusal, prompts_of
from g4convert.verification.engine.vllm import Vllm, vllm
from g4convert.verification.probes.suite import make_probes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Checkpoints

    from g4convert.forward.models import Model
    from g4convert.forward.probe import Probe

SCALE = "model.language_model.layers.0.mlp.up_proj.weight_scale"


@pytest.fixture(scope="module")
def out(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion with pictures, whose vision config has the key that vLLM needs."""
    output = tmp_path_factory.mktemp("engine") / "out"
    quantized(checkpoints("dense"), output)
    return output


@contextmanager
def served(
    checkpoint: Path, expects: Path, fault: str = "", timeout: float = 60, answers: Path | None = None
) -> Iterator[Vllm]:
    """The fake vLLM with a checkpoint, in a process of its own."""
    path = os.pathsep.join([str(TESTS / "helpers" / "fake_engine"), str(TESTS), str(ROOT)])
    environment = os.environ | {
        "PYTHONPATH": path,
        "FAKE_VLLM_EXPECTS": str(expects),
        "FAKE_VLLM_FAULT": fault,
        "FAKE_VLLM_ANSWERS": str(answers),
    }
    with vllm(checkpoint, dtype="float32", timeout=timeout, environment=environment) as engine:
        yield engine


def codes(findings: Sequence[Finding], severity: Severity) -> dict[str, list[str]]:
    """Subjects by code, of those that count so."""
    found: dict[str, list[str]] = {}
    for one in findings:
        if one.severity is severity:
            found.setdefault(one.code, []).append(one.subject)
    return found


def kept(path: Path, model: Model, probes: Sequence[Probe]) -> Path:
    """Keep a model's answers for the fake."""
    prompts = [one for probe in probes for one in prompts_of(probe, model.config)]
    asked = [(one.ids, [(item.kind, item.tensors) for item in one.media]) for one in prompts]
    save_file({question(ids, media): logits_of(model, ids, media) for ids, media in asked}, path)
    return path


@pytest.fixture(scope="module")
def judged(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Finding]]:
    """Level engine of a good checkpoint, by a fake with a fault in it; the first probe of each kind."""
    model = load(out, packed=False)
    probes = make_probes(model, out, kinds=("prose", "batch", "image", "video"), tokens=1)
    probes = [score_some_tokens(one) for one in first_of_each(probes)]

    def judge(fault: str, served_model: Model = model) -> list[Finding]:
        answers = kept(tmp_path_factory.mktemp("answers") / "logits.safetensors", served_model, probes)
        with served(out, out, fault, answers=answers) as engine:
            return [*check_engine(engine, model, probes, progress=Progress()).findings]

    return judge


def test_a_good_checkpoint_passes_whatever_the_engine_prints(judged: Callable[..., list[Finding]]) -> None:
    findings = judged("noise")
    assert not codes(findings, Severity.FAIL)
    assert not codes(findings, Severity.INCONCLUSIVE)
    assert not codes(findings, Severity.WARN)
    passed = codes(findings, Severity.PASS)
    assert passed["engine.load"] == ["vLLM 0.0-fake"]
    assert [one.partition(" ")[0] for one in passed["engine.logprobs"]] == ["all", "prose", "batch", "image", "video"]


@pytest.mark.full
def test_a_key_that_vllm_needs_is_supplied_and_told(out: Path, tmp_path: Path) -> None:
    lacking = damaged(
        out, tmp_path / "lacking", config(lambda whole: whole["vision_config"].pop("default_output_length"))
    )
    model = load(lacking, packed=False)
    probes = [score_some_tokens(one) for one in make_probes(model, lacking, kinds=("prose",), tokens=1)]
    with served(lacking, out, answers=kept(tmp_path / "logits.safetensors", model, probes)) as engine:
        findings = [*check_engine(engine, model, probes, progress=Progress()).findings]
    assert codes(findings, Severity.WARN) == {"engine.config": ["vision_config.default_output_length"]}
    assert "engine.load" in codes(findings, Severity.PASS)


@pytest.mark.full
def test_a_wrong_activation_fails_parity_and_a_refusal_is_told(judged: Callable[..., list[Finding]], out: Path) -> None:
    other = load(out, packed=False)
    for layer in other.get_decoder().layers:
        layer.mlp.act_fn = torch.nn.GELU()
    findings = judged("no pictures", other)
    failed = codes(findings, Severity.FAIL)
    assert [one.partition(" ")[0] for one in failed["engine.logprobs"]] == ["all", "prose", "batch"]
    assert set(failed["engine.probes"]) == {"image_square", "video"}
    assert any("no attribute 'weight'" in one.found for one in findings)


@pytest.mark.full
def test_a_kernel_that_the_machine_lacks_is_no_fault_of_the_checkpoint(judged: Callable[..., list[Finding]]) -> None:
    """Each prompt is refused, the next is not kept waiting by it, and nothing is said to be wrong."""
    findings = judged("no kernel")
    assert not codes(findings, Severity.FAIL)
    refused = [one for one in findings if one.code == "engine.probes"]
    assert len(refused) > 1
    assert {one.severity for one in refused} == {Severity.INCONCLUSIVE}
    assert all("cpu_gemm_wna16" in one.found and "float32" in one.remedy for one in refused)


@pytest.mark.wide
def test_a_lost_tensor_is_named(out: Path, tmp_path: Path) -> None:
    bad = damaged(out, tmp_path / "bad", lose(SCALE))
    with served(bad, out) as engine:
        started = engine.start(16, 4)
    assert [(one.name, one.share) for one in started.unfilled] == [(SCALE, 1.0)]


@pytest.mark.full
def test_a_lost_scalar_and_a_lost_shape_are_named(out: Path, tmp_path: Path) -> None:
    names = ["model.language_model.layers.1.layer_scalar", SCALE.replace("scale", "shape")]
    bad = damaged(out, tmp_path / "bad", lose(*names))
    with served(bad, out) as engine:
        assert sorted(one.name for one in engine.start(16, 4).unfilled) == sorted(names)


@pytest.mark.full
def test_an_unexpected_tensor_is_the_engines_own_message(out: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(out, bad)
    rewrite(bad, lambda held: held.update({"model.language_model.layers.0.extra": torch.ones(1)}))
    with (
        served(bad, out) as engine,
        pytest.raises(EngineRefusal, match=r"no module or parameter named .*extra") as refused,
    ):
        engine.start(16, 4)
    assert refused.value.place == "load"
    assert "ValueError" in refused.value.log


@pytest.mark.full
def test_what_only_this_machine_cannot_is_inconclusive(judged: Callable[..., list[Finding]]) -> None:
    findings = judged("no backend")
    assert not codes(findings, Severity.FAIL)
    assert codes(findings, Severity.INCONCLUSIVE).keys() == {"engine.load", "engine.stopped"}


@pytest.mark.wide
def test_a_hang_ends_in_time(out: Path) -> None:
    begin = time.monotonic()
    with served(out, out, "hang", timeout=2) as engine, pytest.raises(EnvironmentFault, match="no answer within 2 s"):
        engine.start(16, 4)
    assert time.monotonic() - begin < 20


@pytest.mark.full
def test_a_crash_is_told_with_the_end_of_the_log(out: Path) -> None:
    with served(out, out, "crash") as engine, pytest.raises(EnvironmentFault, match="exit status 3") as fault:
        engine.start(16, 4)
    assert "Segmentation fault in a kernel" in fault.value.offenders


@pytest.mark.full
def test_an_engine_that_cannot_be_imported_is_no_fault_of_the_checkpoint(out: Path) -> None:
    with served(out, out, "too old") as engine, pytest.raises(EnvironmentFault, match="Gemma4Config") as fault:
        engine.start(16, 4)
    assert "knows Gemma 4" in fault.value.hint


def test_no_engine_is_told_with_the_remedy(out: Path, tmp_path: Path) -> None:
    for python, message in ((Path(sys.executable), "has no vLLM"), (tmp_path / "python", "not an interpreter")):
        with pytest.raises(EnvironmentFault, match=message) as fault, vllm(out, python=python, timeout=60):
            pass
        assert fault.value.exit_code == 5
        assert "--engine-python" in fault.value.hint
