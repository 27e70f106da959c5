"""Entry of level `logits`: loads the models, runs the probes and judges; also stores a reference for later.

One strict loader loads every model, resident or streamed. Probes are the bundled conversations and media, or the
user's own. The scored answers are the original's, greedy. If the original is streamed, the bundled answers are scored
instead, since each generated token would read all its weights again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
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
from g4convert.report import Finding, Judged, Severity
from g4convert.request import Request
from g4convert.verification import profiles
from g4convert.verification.changed import Stamps, changed, stamps
from g4convert.verification.logits.advice import is_right, judged_kl, measured_on, ways, with_advice
from g4convert.verification.logits.capture import Captured, capture
from g4convert.verification.logits.cost import ComparisonCost
from g4convert.verification.logits.judge import check_logits
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES
from g4convert.verification.logits.trace import Models
from g4convert.verification.probes.answers import is_asked, with_answers
from g4convert.verification.probes.media import MEDIA
from g4convert.verification.probes.own import conversations
from g4convert.verification.probes.suite import make_probes

_ANSWER_TOKENS: Final = 32
"""Most tokens of an answer."""


def run_logits(
    asked: Request,
    out: Checkpoint,
    source: Checkpoint | None = None,
    *,
    progress: Progress,
) -> Judged:
    """Judge what four bits cost (loss), and whether the packed path computes as the dequantized weights do (parity).

    Args:
        asked: the request: reference, profile, prompts and settings.
        out: the opened output.
        source: the checkpoint that the output was made of; None for a stored reference, and for parity alone.
        progress: told of each step, and of its progress.

    Returns:
        Findings and metrics; no metrics if the strict loader refuses the output.

    Raises:
        UsageError: the profile is not valid, or prompts do not suit the model.
        InputError: the reference cannot be loaded.
        EnvironmentFault: out of memory.
    """
    profile = profiles.load(asked.judged_by)
    costs = profile.compares == "loss"
    stored = Captured.open(asked.reference) if asked.is_captured and asked.reference else None
    dtype: DTypeName = cast("DTypeName", asked.settings.dtype)
    with memory_faults():
        progress.say("verifying level logits: loading the models")
        try:
            dequantized = model_of(out, asked, dtype, packed=False)
            runs = ModelCandidate(model_of(out, asked, dtype, beside=dequantized))
        except Unfit as refused:
            return Judged(tuple(_refused(refused)), {})
        if stored is not None and asked.reference is not None:
            stored.check_fits(asked.reference, dequantized.config)
        alone = not Architecture.from_config(out.config).is_composite
        stored, left = _taken(stored, alone=alone)
        original = None
        if costs and source is not None:  # only its text model if the output is text-only
            original = ModelCandidate(model_of(source, asked, dtype, beside=dequantized, alone=alone))
        rounded = None if dtype == "float32" else ModelCandidate(model_of(out, asked, "float32", packed=False))
        models = Models((stored or original) if costs else None, ModelCandidate(dequantized), runs, rounded)
        with threads_for(dequantized):
            probes, told = _asked(asked, original.model if original else dequantized, stored, progress)
            told += left or _text_alone(source, alone=alone)
            running = 3 + sum(one is not None for one in (original, rounded))
            progress.say(ComparisonCost.of(dequantized, probes, running).line(_origin(asked, stored)))
            loss, parity = (profile, profiles.load("parity")) if costs else (profiles.load("w4a16"), profile)
            judged = check_logits(models, probes, loss=loss, parity=parity, progress=progress)
    metrics = {"kl_histogram_edges": [*HISTOGRAM_EDGES], **judged.metrics}
    advised = judged.findings
    if any(map(_loses_much, advised)) and is_right(advised):
        found = ways(out, source, metrics, profile)
        advised = tuple(with_advice(advised, found, high=judged_kl(metrics["loss"]), model=measured_on(out)))
        metrics["advice"] = [asdict(one) for one in found]
    return Judged((_loaded(), *told, *advised), metrics)


def _loses_much(finding: Finding) -> bool:
    """Return whether a metric of the loss is beyond a limit."""
    return finding.code.startswith("logits.loss.") and finding.severity in {Severity.FAIL, Severity.WARN}


def store_reference(
    checkpoint: Checkpoint, output: Path, asked: Request, *, overwrite: bool = True, progress: Progress
) -> Captured:
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
    before = _weights(checkpoint)
    if asked.prompts is not None:
        conversations(asked.prompts, checkpoint.path)  # raises for wrong prompts before anything is loaded
    with memory_faults():
        progress.say("loading the model")
        model = model_of(checkpoint, asked, dtype)
        probes, _ = _asked(asked, model, None, progress, directory=checkpoint.path)
        progress.say(f"running the model: {ComparisonCost.of(model, probes, 0).line(_origin(asked, None))}")
        digest, facts = checkpoint.digest(), {"dtype": dtype, "request": _request(checkpoint, asked)}
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


def _weights(checkpoint: Checkpoint) -> Stamps:
    """Return the stamps of the weight files."""
    return stamps(*(checkpoint.path / name for name in checkpoint.weight_files))


def _check_unchanged(checkpoint: Checkpoint, before: Stamps) -> None:
    """Raise if a weight file was written or replaced since its stamp was taken."""
    if wrong := [found.subject for found in changed(before, _weights(checkpoint))]:
        hint = "start again when nothing writes it"
        raise InputError(f"{checkpoint.path}: changed while it was read", offenders=wrong, hint=hint)


def made_reference(checkpoint: Checkpoint, output: Path, asked: Request) -> Captured:
    """Read a stored reference that the same request made.

    Raises:
        UsageError: another request or version made the file, or it is damaged.
        G4Error: as for `conversations`.
    """
    if asked.prompts is not None:
        conversations(asked.prompts, checkpoint.path)
    try:
        found = Captured.open(output)
    except InputError as error:
        raise already_exists(output, error.message) from error
    if found.facts.get("request") != _request(checkpoint, asked):
        raise already_exists(output, _other_request(found, checkpoint, asked))
    return found


def _other_request(found: Captured, checkpoint: Checkpoint, asked: Request) -> str:
    """Return words on why a stored reference is not the requested one."""
    if found.facts.get("source") != checkpoint.digest():
        return "of another model"
    dtype = found.facts.get("dtype")
    return f"in {dtype}" if dtype != asked.settings.dtype else "of other prompts, or by another version"


def _request(checkpoint: Checkpoint, asked: Request) -> str:
    """Return the hash of everything that a stored reference depends on."""
    prompts = "" if asked.prompts is None else sha256(asked.prompts.read_bytes()).hexdigest()
    model = {"digest": checkpoint.digest(), **Identity.of(checkpoint).to_dict()}
    return hash_of_request({"model": model, "prompts": prompts, "dtype": asked.settings.dtype})


def model_of(  # noqa: PLR0913 -- what is loaded, and four ways to
    checkpoint: Checkpoint,
    asked: Request,
    dtype: DTypeName,
    *,
    packed: bool = True,
    beside: Model | None = None,
    alone: bool = False,
) -> Model:
    """Load a checkpoint's model in the memory and on the device that a request names; see `load`."""
    memory: Memory = asked.settings.memory.value
    device = torch_device(asked.settings.device)
    return load(checkpoint, dtype=dtype, packed=packed, memory=memory, device=device, decoder_only=alone, beside=beside)


def _taken(stored: Captured | None, *, alone: bool) -> tuple[Captured | None, list[Finding]]:
    """Drop the media probes of a stored reference if the output is the text model alone (`alone`)."""
    probes = stored.probes if stored and alone else ()
    text = tuple(probe for probe in probes if probe.bucket not in MEDIA)
    if stored is None or len(text) == len(probes):
        return stored, []
    found = f"{len(probes) - len(text)} left out: the checkpoint is the text model alone"
    return replace(stored, probes=text), [_media(found)]


def _text_alone(source: Checkpoint | None, *, alone: bool) -> list[Finding]:
    """Return a finding if the original takes images or sound and the output does not."""
    if not alone or source is None or not Architecture.from_config(source.config).is_composite:
        return []
    return [_media("none: the checkpoint is the text model alone")]


def _media(found: str) -> Finding:
    return Finding("logits.media", Severity.INFO, "images, videos and sound", found, "")


def _asked(
    asked: Request, model: Model, stored: Captured | None, progress: Progress, *, directory: Path | None = None
) -> tuple[Sequence[Probe], list[Finding]]:
    """Return the probes with their answers, and a finding that says whose answers are scored."""
    if stored is not None:
        return stored.probes, [_answers("those of the stored reference")]
    files = directory or asked.source or asked.output
    mine = None if asked.prompts is None else conversations(asked.prompts, files)
    probes = make_probes(model, files, conversations=mine)
    if is_drafter(model.config.model_type):
        return probes, [_answers("none: a drafter is judged on every state it is handed")]
    if stream_of(model) is not None and all(probe.response.any() for probe in probes):
        return probes, [_answers("the bundled ones: a streamed model would read all its weights for each token")]
    if not any(map(is_asked, probes)):
        return probes, [_answers("none: without a chat template every token of a text is predicted")]
    progress.say("letting the model answer the prompts")
    return with_answers(model, probes, max_new_tokens=_ANSWER_TOKENS), [_answers("the reference's own, greedy")]


def _origin(asked: Request, stored: Captured | None) -> str:
    """Return whose prompts are run."""
    return "stored" if stored is not None else "bundled" if asked.prompts is None else "own"


def _answers(found: str) -> Finding:
    return Finding("logits.answers", Severity.INFO, "answers that are scored", found, "")


def _loaded() -> Finding:
    found = "every tensor has its place in the model, and every place its tensor"
    return Finding("logits.load", Severity.PASS, "strict loader", found, "")


def _refused(refused: Unfit) -> Iterator[Finding]:
    """Yield a finding for each tensor that the strict loader refused, and one that the level did not run."""
    expected = "exactly the tensors of the model"
    for one in refused.misfits:
        yield Finding("logits.load", Severity.FAIL, one.name, one.found, expected)
    remedy = "see the findings of level static"
    yield Finding("logits.stopped", Severity.INCONCLUSIVE, "level logits", "not run: it does not load", "", remedy)
