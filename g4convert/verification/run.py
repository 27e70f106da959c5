"""Pipeline of `g4convert verify`: runs one level after the other, up to the level that was asked for.

    static --> weights --> logits
       |  |       |           |
       |  |       |           the strict loader refuses the output: a finding, and the run ends
       |  |       no checkpoint to compare with: a finding that says so
       |  +--> engine         runs after `static` alone, without `weights` and `logits`
       the files cannot be opened: a finding for each level that could not run, and the run ends

A level that could not run is never skipped silently: an INCONCLUSIVE or INFO finding says what was not checked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.checkpoint.record import RECORD, record
from g4convert.checkpoint.uses import is_quantized
from g4convert.errors import UsageError
from g4convert.gemma4 import is_drafter
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult, Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.changed import find_changes, take_stamps
from g4convert.verification.provenance import advise_other_source, check_provenance
from g4convert.verification.static.level import check_static, open_output
from g4convert.verification.static.stored_reference import compare_described
from g4convert.verification.weights.hashes import check_hashes


def verify(
    asked: Request,
    *,
    progress: Progress | None = None,
    written: bool = False,
) -> Report:
    """Verify a quantized checkpoint.

    Args:
        asked: checkpoint, reference and last level.
        progress: told of each step, and of its progress.
        written: the output was written by this process just now: the decoder is compared with recorded results.

    Returns:
        Every finding and measured number.

    Raises:
        UsageError: the level needs a reference, a profile is not valid, or prompts do not suit the model.
        InputError: the output does not exist, or the reference is not a Gemma 4 checkpoint or stored reference.
        EnvironmentFault: out of memory.
    """
    progress = progress or Progress()
    before = take_stamps(asked.output, asked.reference)
    _check_request(asked)
    directories = _Opened.open(asked)
    _check_directories(asked, directories)
    if asked.is_captured and asked.level is None:
        progress.say(f"levels static and logits, as {asked.reference} holds logits and no weights")
    progress.say("verifying level static: names, shapes, config and files")
    findings, ran, metrics = [*_run_static(asked, directories)], [Level.STATIC], dict[str, Any]()
    for level in _following_levels(asked):
        judged = _run_level(level, asked, directories, findings, progress, written=written)
        findings += judged.findings
        metrics |= judged.metrics
        ran += [level] if judged.metrics else []
    if directories.out is not None and asked.depth is Level.STATIC and asked.level is None:
        progress.say("hashes: every file against its recorded hash")
        findings += check_hashes(directories.out)
    findings += find_changes(before, take_stamps(asked.output, asked.reference))
    named = None if asked.reference is None else str(asked.reference)
    return Report((*advise_other_source(findings),), tuple(ran), metrics, str(asked.output), named)


def _following_levels(asked: Request) -> tuple[Level, ...]:
    """Return the levels that follow `static`; `engine` runs without the two others, since it takes long enough."""
    if asked.depth is Level.ENGINE:
        return (Level.ENGINE,)
    return tuple(level for level in (Level.WEIGHTS, Level.LOGITS) if asked.depth.includes(level))


@dataclass(frozen=True, slots=True)
class _Opened:
    """Checkpoints to compare; each directory is opened once.

    Args:
        out: the output; None if its files cannot be opened.
        broken: findings that say why the output cannot be opened.
        source: the checkpoint that the output is compared with; None if there is none.
    """

    out: Checkpoint | None
    broken: tuple[Finding, ...]
    source: Checkpoint | None

    @classmethod
    def open(cls, asked: Request) -> "_Opened":
        """Open the output and the source of a request.

        Raises:
            InputError: the output directory does not exist, or the source cannot be opened.
            UnsupportedError: weights in another file format, or an output stored otherwise than pack-quantized.
        """
        source = None if asked.source is None else Checkpoint.open(asked.source)
        match open_output(asked.output):
            case Checkpoint() as out:
                return cls(out, (), source)
            case broken:
                return cls(None, broken, source)


def _run_level(  # noqa: PLR0913 -- a level, all that it may read, and who is told
    level: Level,
    asked: Request,
    directories: _Opened,
    before: Sequence[Finding],
    progress: Progress,
    *,
    written: bool,
) -> LevelResult:
    """Run a level that reads weights, after the findings `before`; no metrics if the level could not run."""
    out = directories.out
    if out is None:
        return LevelResult(
            (_stopped_finding(level, "the files cannot be opened", "see the findings of level static"),), {}
        )
    match level:
        case Level.WEIGHTS:
            return _run_weights(asked, out, directories.source, progress, written=written)
        case Level.LOGITS:
            from g4convert.verification.logits.guarded import run_guarded  # noqa: PLC0415 -- brings torch and transformers

            return run_guarded(asked, out, directories.source, before, progress=progress)
        case _:
            from g4convert.verification.engine.level import run_engine  # noqa: PLC0415 -- brings torch and transformers

            return run_engine(asked, out, progress=progress)


def _run_weights(
    asked: Request, out: Checkpoint, source: Checkpoint | None, progress: Progress, *, written: bool
) -> LevelResult:
    hashes = tuple(check_hashes(out))
    if source is None:
        why = "a stored reference holds no weights" if asked.is_captured else "there is no reference"
        severity = Severity.INCONCLUSIVE if asked.depth is Level.WEIGHTS else Severity.INFO
        remedy = "pass the checkpoint itself: --reference MODEL"
        stopped = _stopped_finding(Level.WEIGHTS, why, remedy, severity=severity, outcome="values not compared")
        return LevelResult((*hashes, stopped), {})
    from g4convert.verification.weights.level import bound, check_weights  # noqa: PLC0415 -- brings torch; static needs none

    progress.say(f"verifying level weights: {bound(out)}")
    rows: list[dict[str, Any]] = []
    findings = check_weights(out, source, progress=progress, table=rows, recorded=written)
    return LevelResult((*hashes, *findings), {"weights": {"tensors": rows}})


def _check_request(asked: Request) -> None:
    """Raise if the request cannot be run, as far as the request alone shows."""
    needs_no_reference = asked.depth in {Level.STATIC, Level.ENGINE}
    if asked.depth is Level.LOGITS:
        from g4convert.verification.profiles import load  # noqa: PLC0415 -- brings yaml and pydantic

        needs_no_reference = load(asked.profile_name).compares == "parity"
    if asked.reference is None and not needs_no_reference:
        text = f"level {asked.depth} needs a reference"
        if asked.implied_by:
            text = f"--{asked.implied_by} belongs to level {asked.depth}, which needs a reference"
        raise UsageError(text, hint=_reference_hint(asked.output))
    if asked.settings.device != "cpu":
        from g4convert.devices import torch_device  # noqa: PLC0415 -- brings torch

        torch_device(asked.settings.device)
    if asked.is_captured and asked.prompts is not None:
        raise UsageError("a stored reference has its own prompts", hint="leave --prompts out, or pass the model")


def _check_directories(asked: Request, directories: _Opened) -> None:
    """Raise, before any work, if the request does not suit the directories."""
    _check_order(asked, directories)
    if asked.engine is not None and directories.out is not None:
        from g4convert.verification.engine.level import look_for_engine  # noqa: PLC0415 -- brings torch and transformers

        look_for_engine(asked)
    if asked.prompts is not None and (directories.source or directories.out) is not None:
        from g4convert.verification.probes.own import conversations  # noqa: PLC0415 -- brings torch and transformers

        conversations(asked.prompts, asked.source or asked.output)


def _check_order(asked: Request, directories: _Opened) -> None:
    """Raise if the reference is quantized and the output is not: the two are swapped."""
    out, reference = directories.out, directories.source
    if out is None or reference is None:
        return
    if is_quantized(reference) and not is_quantized(out):
        raise UsageError(
            f"{asked.output} is not quantized and {asked.source} is: the two are swapped",
            hint=f"g4convert verify {quote(str(asked.source))} --reference {quote(str(asked.output))}",
        )


def _stopped_finding(
    level: Level, why: str, remedy: str, *, severity: Severity = Severity.INCONCLUSIVE, outcome: str = "not run"
) -> Finding:
    return Finding(f"{level}.stopped", severity, f"level {level}", f"{outcome}: {why}", "", remedy)


def _run_static(asked: Request, directories: _Opened) -> Iterator[Finding]:
    """Yield the findings of level `static`: of names, shapes, config and files, and of the output's record."""
    out, source, facts = directories.out, directories.source, _stored_facts(asked)
    yield from directories.broken if out is None else check_static(out, source)
    if out is not None and asked.is_captured:
        yield from compare_described(out, facts)
    yield from check_provenance(asked, source, facts)
    if out is not None:
        yield from _check_quantized(out)


def _stored_facts(asked: Request) -> Mapping[str, Any]:
    """Return the metadata of a stored reference; empty if the request has none."""
    if not asked.is_captured or asked.reference is None:
        return {}
    from g4convert.verification.logits.capture import StoredReference  # noqa: PLC0415 -- brings torch

    return StoredReference.open(asked.reference).facts


def _check_quantized(out: Checkpoint) -> Iterable[Finding]:
    """Yield a finding if the output is not quantized; a drafter may be kept unquantized."""
    if not is_quantized(out) and not is_drafter(out.config.get("model_type")):
        found, remedy = "none is quantized: this is a plain checkpoint", "`g4convert quantize` makes a quantized one"
        yield Finding("static.quantized", Severity.INCONCLUSIVE, "weights", found, "a quantized checkpoint", remedy)


def _reference_hint(output: Path) -> str:
    name = part(record(output), "source").get("name")
    made_of = f"; {RECORD} says it was made of {name}" if name else ""
    return f"--reference MODEL, a directory, a hub name, or a file of `g4convert reference`{made_of}"
