"""Entry of level `logits`: loads the models, runs the probes and judges; also stores a reference for later.

One strict loader loads every model, resident or streamed. Probes are the bundled conversations and media, or the
user's own. The scored answers are the original's, greedy. If the original is streamed, the bundled answers are scored
instead, since each generated token would read all its weights again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, cast

from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.identity import Model as Identity
from g4convert.conversion.identity import hash_of_request
from g4convert.devices import memory_faults, threads_for, torch_device
from g4convert.errors import InputError
from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.load import DTypeName, Memory, load
from g4convert.forward.misfits import Unfit
from g4convert.forward.models import Model
from g4convert.forward.probe import Probe
from g4convert.forward.streaming import stream_of
from g4convert.gemma4 import Architecture, is_drafter
from g4convert.places import already_exists
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult, Severity
from g4convert.request import Request
from g4convert.verification import profiles
from g4convert.verification.changed import Stamps, find_changes, take_stamps
from g4convert.verification.logits.advice import add_advice, better_recipes, is_right, judged_kl, measured_on
from g4convert.verification.logits.capture import StoredReference, capture
from g4convert.verification.logits.cost import ComparisonCost
from g4convert.verification.logits.earlier import blame_fault, judge_file
from g4convert.verification.logits.judge import check_logits
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES
from g4convert.verification.logits.trace import Models
from g4convert.verification.probes.answers import answer_probes, is_asked
from g4convert.verification.probes.media import MEDIA
from g4convert.verification.probes.own import conversations
from g4convert.verification.probes.suite import make_probes
from g4convert.verification.static.stored_reference import describe_source

_ANSWER_TOKENS: Final = 32
"""Most tokens of an answer."""


def run_logits(
    asked: Request,
    out: Checkpoint,
    source: Checkpoint | None,
    before: Sequence[Finding] = (),
    *,
    progress: Progress,
) -> LevelResult:
    """Judge what four bits cost (loss), and whether the packed path computes as the dequantized weights do (parity).

    Args:
        asked: the request: reference, profile, prompts and settings.
        out: the opened output.
        source: the checkpoint that the output was made of; None for a stored reference, and for parity alone.
        before: findings of the levels before: no recipe is to blame for a loss of a file that is wrong.
        progress: told of each step, and of its progress.

    Returns:
        Findings and metrics; no metrics if the strict loader refuses the output.

    Raises:
        UsageError: the profile is not valid, or prompts do not suit the model.
        InputError: the reference cannot be loaded.
        EnvironmentFault: out of memory.
    """
    profile = profiles.load(asked.profile_name)
    measures_loss = profile.compares == "loss"
    stored = StoredReference.open(asked.reference) if asked.is_captured and asked.reference else None
    dtype: DTypeName = cast("DTypeName", asked.settings.dtype)
    with memory_faults():
        progress.say("verifying level logits: loading the models")
        text_only = not Architecture.from_config(out.config).is_composite
        load_alike = partial(load_model, asked=asked, text_only=text_only)  # layers are swapped between the models
        try:
            dequantized = load_alike(out, dtype=dtype, packed=False)
            packed = ModelCandidate(load_alike(out, dtype=dtype, beside=dequantized))
        except Unfit as refused:
            return LevelResult(tuple(_refusal_findings(refused)), {})
        if stored is not None and asked.reference is not None:
            stored.check_fits(asked.reference, dequantized.config)
        stored, left_out = _drop_media_probes(stored, text_only=text_only)
        original = None
        if measures_loss and source is not None:  # only its text model if the output is text-only
            original = ModelCandidate(load_alike(source, dtype=dtype, beside=dequantized))
        rounded = None if dtype == "float32" else ModelCandidate(load_alike(out, dtype="float32", packed=False))
        models = Models((stored or original) if measures_loss else None, ModelCandidate(dequantized), packed, rounded)
        with threads_for(dequantized):
            probes, notes = _choose_probes(asked, original.model if original else dequantized, stored, progress)
            notes += left_out or _note_text_only(source, text_only=text_only)
            running = 3 + sum(model is not None for model in (original, rounded))
            progress.say(ComparisonCost.of(dequantized, probes, running).line(_prompts_origin(asked, stored)))
            loss, parity = (profile, profiles.load("parity")) if measures_loss else (profiles.load("w4a16"), profile)
            judged = check_logits(models, probes, loss=loss, parity=parity, progress=progress)
    metrics = {"kl_histogram_edges": [*HISTOGRAM_EDGES], **judged.metrics}
    findings = judged.findings
    if any(one.severity is Severity.FAIL for one in before):
        findings = tuple(blame_fault(findings, before))
    elif any(map(_loses_much, findings)) and is_right(findings):
        recipes = better_recipes(out, source, metrics, profile)
        findings = tuple(
            add_advice(
                findings,
                recipes,
                high=judged_kl(metrics["loss"]),
                model=measured_on(out),
                judged=judge_file(before, compared=source is not None),
                drafts=is_drafter(out.config.get("model_type")),
            )
        )
        metrics["advice"] = [asdict(recipe) for recipe in recipes]
    return LevelResult((_load_finding(), *notes, *findings), metrics)


def _loses_much(finding: Finding) -> bool:
    """Return whether a metric of the loss is beyond a limit."""
    return finding.code.startswith("logits.loss.") and finding.severity in {Severity.FAIL, Severity.WARN}


def store_reference(
    checkpoint: Checkpoint, output: Path, asked: Request, *, overwrite: bool = True, progress: Progress
) -> StoredReference:
    """Run a model on the probes and store its outputs, to judge candidates without the model later.

    Args:
        checkpoint: the original; see `checkpoint.uses.original`.
        output: path of the file to write.
        asked: the request: prompts, memory and dtype.
        overwrite: replace a file that is there.
        progress: told of each step, and of finished tokens.

    Raises:
        UsageError: a file is there that may not be replaced.
        InputError: the model changed while it was read.
        G4Error: as for `run_logits`.
    """
    dtype: DTypeName = cast("DTypeName", asked.settings.dtype)
    before = _stamp_weights(checkpoint)
    if asked.prompts is not None:
        conversations(asked.prompts, checkpoint.path)  # raises for wrong prompts before anything is loaded
    with memory_faults():
        progress.say("loading the model")
        model = load_model(checkpoint, asked, dtype)
        probes, _ = _choose_probes(asked, model, None, progress, directory=checkpoint.path)
        progress.say(f"running the model: {ComparisonCost.of(model, probes, 0).line(_prompts_origin(asked, None))}")
        digest = checkpoint.digest()
        facts = {"dtype": dtype, "request": _hash_request(checkpoint, asked), **describe_source(checkpoint)}
        candidate = ModelCandidate(model)
        return capture(
            candidate,
            probes,
            output,
            source=digest,
            facts=facts,
            overwrite=overwrite,
            check=lambda: _check_unchanged(checkpoint, before),
            progress=progress,
        )


def _stamp_weights(checkpoint: Checkpoint) -> Stamps:
    """Return the stamps of the weight files."""
    return take_stamps(*(checkpoint.path / name for name in checkpoint.weight_files))


def _check_unchanged(checkpoint: Checkpoint, before: Stamps) -> None:
    """Raise if a weight file was written or replaced since its stamp was taken."""
    if wrong := [change.subject for change in find_changes(before, _stamp_weights(checkpoint))]:
        hint = "start again when nothing writes it"
        raise InputError(f"{checkpoint.path}: changed while it was read", offenders=wrong, hint=hint)


def read_reference(checkpoint: Checkpoint, output: Path, asked: Request) -> StoredReference:
    """Read a stored reference that the same request made.

    Raises:
        UsageError: another request or version made the file, or it is damaged.
        G4Error: as for `conversations`.
    """
    if asked.prompts is not None:
        conversations(asked.prompts, checkpoint.path)
    try:
        captured = StoredReference.open(output)
    except InputError as error:
        raise already_exists(output, error.message) from error
    if captured.facts.get("request") != _hash_request(checkpoint, asked):
        raise already_exists(output, _describe_mismatch(captured, checkpoint, asked))
    return captured


def _describe_mismatch(captured: StoredReference, checkpoint: Checkpoint, asked: Request) -> str:
    """Describe how a stored reference differs from the requested one."""
    if captured.facts.get("source") != checkpoint.digest():
        return "of another model"
    dtype = captured.facts.get("dtype")
    return f"in {dtype}" if dtype != asked.settings.dtype else "of other prompts, or by another version"


def _hash_request(checkpoint: Checkpoint, asked: Request) -> str:
    """Return the hash of everything that a stored reference depends on."""
    prompts = "" if asked.prompts is None else sha256(asked.prompts.read_bytes()).hexdigest()
    model = {"digest": checkpoint.digest(), **Identity.of(checkpoint).to_dict()}
    return hash_of_request({"model": model, "prompts": prompts, "dtype": asked.settings.dtype})


def load_model(  # noqa: PLR0913 -- what is loaded, and four ways to
    checkpoint: Checkpoint,
    asked: Request,
    dtype: DTypeName,
    *,
    packed: bool = True,
    beside: Model | None = None,
    text_only: bool = False,
) -> Model:
    """Load a checkpoint's model in the memory and on the device that a request names; see `load`."""
    memory: Memory = asked.settings.memory.value
    device = torch_device(asked.settings.device)
    return load(
        checkpoint, dtype=dtype, packed=packed, memory=memory, device=device, decoder_only=text_only, beside=beside
    )


def _drop_media_probes(
    stored: StoredReference | None, *, text_only: bool
) -> tuple[StoredReference | None, list[Finding]]:
    """Drop the media probes of a stored reference if the output is the text model alone (`text_only`)."""
    probes = stored.probes if stored and text_only else ()
    text = tuple(probe for probe in probes if probe.bucket not in MEDIA)
    if stored is None or len(text) == len(probes):
        return stored, []
    found = f"{len(probes) - len(text)} left out: the checkpoint is the text model alone"
    return replace(stored, probes=text), [_media_finding(found)]


def _note_text_only(source: Checkpoint | None, *, text_only: bool) -> list[Finding]:
    """Return a finding if the original takes images or sound and the output does not."""
    if not text_only or source is None or not Architecture.from_config(source.config).is_composite:
        return []
    return [_media_finding("none: the checkpoint is the text model alone")]


def _media_finding(found: str) -> Finding:
    return Finding("logits.media", Severity.INFO, "images, videos and sound", found, "")


def _choose_probes(
    asked: Request, model: Model, stored: StoredReference | None, progress: Progress, *, directory: Path | None = None
) -> tuple[Sequence[Probe], list[Finding]]:
    """Return the probes with their answers, and a finding that says whose answers are scored."""
    if stored is not None:
        return stored.probes, [_answers_finding("those of the stored reference")]
    files = directory or asked.source or asked.output
    own_prompts = None if asked.prompts is None else conversations(asked.prompts, files)
    probes = make_probes(model, files, conversations=own_prompts)
    if is_drafter(model.config.model_type):
        return probes, [_answers_finding("none: a drafter is judged on every state it is handed")]
    if stream_of(model) is not None and all(probe.response.any() for probe in probes):
        found = (
            "the bundled ones, of which the KL is higher: a streamed model would read all its weights for each token"
        )
        return probes, [_answers_finding(found)]
    if not any(map(is_asked, probes)):
        return probes, [_answers_finding("none: without a chat template every token of a text is predicted")]
    progress.say("letting the model answer the prompts")
    answered = answer_probes(model, probes, max_new_tokens=_ANSWER_TOKENS)
    return answered, [_answers_finding("the reference's own, greedy")]


def _prompts_origin(asked: Request, stored: StoredReference | None) -> str:
    """Return whose prompts are run."""
    return "stored" if stored is not None else "bundled" if asked.prompts is None else "own"


def _answers_finding(found: str) -> Finding:
    return Finding("logits.answers", Severity.INFO, "answers that are scored", found, "")


def _load_finding() -> Finding:
    found = "every tensor has its place in the model, and every place its tensor"
    return Finding("logits.load", Severity.PASS, "strict loader", found, "")


def _refusal_findings(refused: Unfit) -> Iterator[Finding]:
    """Yield a finding for each tensor that the strict loader refused, and one that the level did not run."""
    expected = "exactly the tensors of the model"
    for misfit in refused.misfits:
        yield Finding("logits.load", Severity.FAIL, misfit.name, misfit.found, expected)
    remedy = "correct first what logits.load names"
    yield Finding("logits.stopped", Severity.INCONCLUSIVE, "level logits", "not run: it does not load", "", remedy)
