"""Level `engine`: compares a real engine's log-probabilities with those of the dequantized weights, on equal tokens.

    probes --+-> dequantized, in this process --> logits --------------------+
             |                                                               +--> parity, by kind of probe
             +-> engine, in its own process or on a server --> log-probs ----+
    dequantized with rounding noise --> log-probs: the floor

First the engine must load the checkpoint, and every parameter must be filled by a tensor; only then are numbers worth
comparing. The reference always runs in float32. The noise floor is measured for the engine's own dtype.

    engine.load         the engine refuses the checkpoint, or parameters are not filled
    engine.config       keys that the engine needs and the checkpoint lacks
    engine.kernels      matrix products that ran
    engine.logprobs     differences by kind of probe, in multiples of the floor
    engine.parity.*     metrics of level `logits` against profile `parity`
    engine.probes       prompts that the engine refused
    engine.coverage     inputs and properties that were not checked
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import memory_faults, threads_for
from g4convert.errors import GateError
from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.gemma4 import is_drafter
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult, Severity
from g4convert.request import Request, ServedEngine
from g4convert.verification import profiles
from g4convert.verification.engine.judge import (
    MeasuredParity,
    judge_failed_start,
    judge_parity,
    judge_refusals,
    judge_start,
    list_uncovered,
)
from g4convert.verification.engine.prompts import EngineRefusal, Prompt, ServingEngine, Started, prompts_of
from g4convert.verification.engine.scores import AnswerSums, Parity
from g4convert.verification.engine.sglang import sglang
from g4convert.verification.engine.vllm import look_for_vllm, vllm
from g4convert.verification.logits.kept import KeptProbe
from g4convert.verification.logits.level import load_model
from g4convert.verification.logits.noise import EPSILON, adding_noise
from g4convert.verification.logits.parts import decoder_layers
from g4convert.verification.logits.scores import TopLogits
from g4convert.verification.logits.teacher import adapt_arguments
from g4convert.verification.probes.own import conversations
from g4convert.verification.probes.suite import digest, make_probes

_SEED: Final = 1
_DTYPE: Final = "bfloat16"
"""Dtype of an engine that does not say its own."""
_TOP: Final = 64
"""Number of likeliest tokens that are requested of each distribution."""


def look_for_engine(asked: Request) -> None:
    """Raise if the engine is not available, before any long work.

    Raises:
        UsageError: the server serves another model.
        EnvironmentFault: the interpreter has no vLLM, or no server answers.
    """
    if asked.engine is ServedEngine.SGLANG:
        with _open_engine(asked) as server:
            server.start(0, 0)
    else:
        look_for_vllm(asked.engine_python)


def run_engine(asked: Request, out: Checkpoint, *, progress: Progress) -> LevelResult:
    """Start the requested engine, and judge it.

    Args:
        asked: the request: engine, prompts and settings.
        out: the opened checkpoint that the engine serves.
        progress: told of each step.

    Returns:
        Findings and metrics; no metrics if nothing could be compared.

    Raises:
        UsageError: the server serves another model.
        EnvironmentFault: the engine is missing, does not answer in time or breaks down; or out of memory.
    """
    with memory_faults(), _open_engine(asked) as engine:
        progress.say("engine: loading the dequantized weights")
        try:
            model = load_model(out, asked, "float32", packed=False)
        except GateError:
            found = "not run: the strict loader refuses the checkpoint"
            remedy = "see the findings of level logits"
            return LevelResult(
                (Finding("engine.stopped", Severity.INCONCLUSIVE, "level engine", found, "", remedy),), {}
            )
        if is_drafter(model.config.model_type):
            found = "not run: a drafter runs beside its target only"
            return LevelResult((Finding("engine.stopped", Severity.INCONCLUSIVE, "level engine", found, ""),), {})
        files = asked.source or asked.output
        own_prompts = None if asked.prompts is None else conversations(asked.prompts, files)
        probes = [score_some_tokens(probe) for probe in make_probes(model, files, conversations=own_prompts)]
        with threads_for(model):
            return check_engine(
                engine, model, probes, half=lambda: load_model(out, asked, "bfloat16", packed=False), progress=progress
            )


def check_engine(
    engine: ServingEngine,
    model: Model,
    probes: Sequence[Probe],
    *,
    half: Callable[[], Model] | None = None,
    progress: Progress,
) -> LevelResult:
    """Judge an engine.

    Args:
        engine: the engine that serves the checkpoint.
        model: the checkpoint's dequantized weights, in float32.
        probes: probes with scored rows.
        half: loader of the same model in bfloat16, for the floor of an engine that runs in bfloat16.
        progress: told of each step.

    Raises:
        EnvironmentFault: the engine does not answer in time, or breaks down.
    """
    top = min(_TOP, model.config.get_text_config().vocab_size)
    suitable = [probe for probe in probes if probe.bucket in engine.takes or not _has_media(probe)]
    prompts = {probe.name: prompts_of(probe, model.config) for probe in suitable}
    longest = max(len(prompt.ids) for several in prompts.values() for prompt in several)
    progress.say("engine: starting it")
    try:
        started = engine.start(longest, top)
    except EngineRefusal as refused:
        progress.say(f"engine: the end of what it printed\n{refused.log}")
        return LevelResult(tuple(judge_failed_start(refused)), {})
    findings = [*judge_start(started)]
    if started.unfilled:
        return LevelResult(tuple(findings), {})
    progress.say("engine: asking it")
    answers, refusals = _ask(engine, suitable, prompts)
    findings += judge_refusals(refusals, started)
    findings += list_uncovered(probes, suitable, started)
    answered = [probe for probe in suitable if probe.name in answers]
    if not answered:
        return LevelResult(tuple(findings), {})
    progress.say("engine: comparing with the dequantized weights")
    measured = _EngineComparison(answered, answers, started, top).measure(model, half)
    findings += judge_parity(measured, profiles.load("parity"), dtype=started.dtype or _DTYPE)
    asked = {"probes": {"count": len(answered), "digest": digest(answered)}}
    return LevelResult(tuple(findings), {"engine": started.to_dict() | asked | measured.to_dict()})


def score_some_tokens(probe: Probe) -> Probe:
    """Return the probe; if it scores no token, a copy that scores all tokens but the first of each row."""
    if bool(probe.response.any()):
        return probe
    answers = probe.attended.view(probe.response.shape).clone()
    answers &= answers.cumsum(-1) > 1
    return Probe.of(probe.name, probe.bucket, probe.arguments, answers)


def _has_media(probe: Probe) -> bool:
    return "mm_token_type_ids" in probe.arguments


def _open_engine(asked: Request) -> AbstractContextManager[ServingEngine]:
    timeout = asked.settings.engine_timeout
    match asked.engine:
        case ServedEngine.SGLANG:
            return sglang(asked.output, url=str(asked.engine_url), timeout=timeout)
        case _:
            return vllm(asked.output, python=asked.engine_python, dtype=asked.dtype, timeout=timeout)


def _ask(
    engine: ServingEngine, probes: Sequence[Probe], prompts: Mapping[str, Sequence[Prompt]]
) -> tuple[dict[str, TopLogits], dict[str, EngineRefusal]]:
    """Ask the engine about every probe; return the answers and the refusals, by name of the probe."""
    answers: dict[str, TopLogits] = {}
    refusals: dict[str, EngineRefusal] = {}
    for probe in probes:
        try:
            parts = [engine.score(prompt) for prompt in prompts[probe.name]]
        except EngineRefusal as refused:
            refusals[probe.name] = refused
            continue
        answers[probe.name] = join_answers(parts)
    return answers, refusals


def join_answers(parts: Sequence[TopLogits]) -> TopLogits:
    """Concatenate the answers of several prompts, cut to the smallest number of tokens per row."""
    width = min(part.ids.shape[1] for part in parts)
    return TopLogits(
        torch.cat([part.ids[:, :width] for part in parts]),
        torch.cat([part.logprobs[:, :width] for part in parts]),
        torch.cat([part.log_sum_exp for part in parts]),
        torch.cat([part.target_logprob for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class _EngineComparison:
    """Comparison of an engine's answers with the reference.

    Args:
        probes: the answered probes.
        answers: the engine's answers, by name of the probe.
        started: facts of the engine, with its dtype and attention.
        top: number of tokens of each row that were requested.
    """

    probes: Sequence[Probe]
    answers: Mapping[str, TopLogits]
    started: Started
    top: int

    def measure(self, model: Model, half: Callable[[], Model] | None) -> MeasuredParity:
        """Run the reference once, and compare the reference with noise and the engine's answers with it."""
        dtype = self.started.dtype or _DTYPE
        noise = {}
        with self._attending_like_the_engine(model):
            reference = ModelCandidate(model, inside=False)
            reference_outputs = self._run_reference(reference)
            with adding_noise(list(decoder_layers(model).values()), EPSILON[dtype], seed=_SEED):
                noise["noise"] = self._compare_with_noise(reference_outputs, reference, self.probes)
        if dtype == "bfloat16" and half is not None:
            rounded = half()
            arguments = [
                replace(probe, arguments=adapt_arguments(probe.arguments, model, rounded)) for probe in self.probes
            ]
            with self._attending_like_the_engine(rounded):
                noise["rounding"] = self._compare_with_noise(
                    reference_outputs, ModelCandidate(rounded, inside=False), arguments
                )
        sums = AnswerSums()
        for probe in self.probes:
            sums.add(probe, reference_outputs[probe.name], self.answers[probe.name])
        return MeasuredParity(sums.parity(), noise)

    def _run_reference(self, reference: ModelCandidate) -> dict[str, KeptProbe]:
        def keep(probe: Probe, outputs: ProbeOutputs) -> KeptProbe:
            return KeptProbe.of(probe, outputs, inside=False)

        found = run_all(reference, self.probes, keep)
        return {probe.name: one for probe, one in zip(self.probes, found, strict=True)}

    def _compare_with_noise(
        self, reference_outputs: Mapping[str, KeptProbe], candidate: ModelCandidate, probes: Sequence[Probe]
    ) -> Parity:
        sums = AnswerSums()

        def add(probe: Probe, outputs: ProbeOutputs) -> None:
            sums.add_outputs(probe, reference_outputs[probe.name], outputs, self.top)

        run_all(candidate, probes, add)
        return sums.parity()

    @contextmanager
    def _attending_like_the_engine(self, model: Model) -> Iterator[None]:
        """Make the model's attention causal for pictures, too, if the engine's is."""
        text = model.config.get_text_config()
        before = text.use_bidirectional_attention
        if self.started.causal:
            text.use_bidirectional_attention = None
        try:
            yield
        finally:
            text.use_bidirectional_attention = before
