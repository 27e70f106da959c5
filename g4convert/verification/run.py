"""The pipeline of `g4convert verify`: one level after the other, as far as asked and as far as it makes sense.

    static --> weights --> logits --> engine
       |          |           |
       |          |           the strict loader refuses: a finding, and the end
       |          no checkpoint to compare with: nothing to do, and said
       files that cannot be opened: a finding for each level that could not run, and the end

A level that could not run is INCONCLUSIVE, never passed over: a report says what was not looked at.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import InputError, UsageError
from g4convert.progress import Quiet
from g4convert.report import Finding, Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.static.level import check_static

if TYPE_CHECKING:
    from g4convert.forward.candidate import Candidate

__all__ = ["PROVENANCE", "verify"]

PROVENANCE: Final = "g4convert.json"
"""What a conversion says of itself, in its output."""


def verify(
    asked: Request,
    *,
    progress: Quiet | None = None,
    say: Callable[[str], None] = lambda _: None,
    candidate: "Callable[[Path], Candidate] | None" = None,
) -> Report:
    """Verify a quantized checkpoint.

    Args:
        asked: what, against what, and how far.
        progress: told of every piece that the level `weights` has read.
        say: told what is done next.
        candidate: gives the path that runs, for the level `logits`; by default the packed weights in this process.

    Returns:
        Every finding and measured number.

    Raises:
        UsageError: the level needs a reference, a profile is not valid, prompts do not suit the model.
        InputError: no output, or a reference that is none.
        EnvironmentFault: out of memory.
    """
    depth = asked.depth
    _check(asked)
    say("static: names, shapes, config and files")
    findings = [*check_static(asked.output, asked.source), *_provenance(asked)]
    ran = [Level.STATIC]
    metrics: dict[str, Any] = {}
    out = _opened(asked.output)
    later = [level for level in (Level.WEIGHTS, Level.LOGITS, Level.ENGINE) if depth.includes(level)]
    if out is None:
        findings += (_stopped(level, "the files cannot be opened", _SEE_STATIC) for level in later)
        later = []
    if out is not None and Level.WEIGHTS in later:
        if asked.source is None:
            why = "a stored reference holds no weights" if asked.is_captured else "there is no reference"
            findings.append(_stopped(Level.WEIGHTS, why, "pass the checkpoint itself", severity=Severity.INFO))
        else:
            from g4convert.verification.weights.level import check_weights  # noqa: PLC0415 -- brings torch; static needs none

            say("weights: every value against its source")
            rows: list[dict[str, Any]] = []
            calibrated = "calibration" in (_recorded(asked.output, "result") or {})
            source = Checkpoint.open(asked.source)
            findings += check_weights(out, source, progress=progress, table=rows, calibrated=calibrated)
            metrics["weights"] = {"tensors": rows}
            ran.append(Level.WEIGHTS)
    if out is not None and Level.LOGITS in later:
        from g4convert.verification.logits.level import run_logits  # noqa: PLC0415 -- brings torch and transformers

        judged = run_logits(asked, say=say, candidate=candidate)
        findings += judged.findings
        metrics |= judged.metrics
        ran += [Level.LOGITS] if judged.metrics else []
    if out is not None and Level.ENGINE in later:
        from g4convert.verification.engine.level import run_engine  # noqa: PLC0415 -- brings torch and transformers

        served = run_engine(asked, say=say)
        findings += served.findings
        metrics |= served.metrics
        ran += [Level.ENGINE] if served.metrics else []
    named = None if asked.reference is None else str(asked.reference)
    return Report(tuple(findings), tuple(ran), metrics, str(asked.output), named)


_SEE_STATIC: Final = "see the findings of level static"


def _check(asked: Request) -> None:
    """What can be refused before any work."""
    parity_only = False
    if asked.depth.includes(Level.LOGITS):
        from g4convert.verification.gates import load  # noqa: PLC0415 -- brings yaml and pydantic

        parity_only = load(asked.judged_by).compares == "parity"
    if asked.depth is not Level.STATIC and asked.reference is None and not parity_only:
        raise UsageError(f"level {asked.depth} needs a reference", hint=_reference_hint(asked.output))
    if asked.device not in {None, "cpu"}:
        from g4convert.devices import torch_device  # noqa: PLC0415 -- brings torch

        torch_device(str(asked.device))
    if asked.engine is not None and _opened(asked.output) is not None:
        from g4convert.verification.engine.level import look_for_engine  # noqa: PLC0415 -- brings torch and transformers

        look_for_engine(asked)
    if asked.is_captured and asked.prompts is not None:
        raise UsageError("a stored reference has its own prompts", hint="leave --prompts out, or pass the model")
    if asked.prompts is not None and _opened(asked.source or asked.output) is not None:
        from g4convert.verification.logits.level import conversations  # noqa: PLC0415 -- brings torch and transformers

        conversations(asked.prompts, asked.source or asked.output)


def _opened(output: Path) -> Checkpoint | None:
    try:
        return Checkpoint.open(output)
    except InputError:
        return None  # the level static has said why


def _stopped(level: Level, why: str, remedy: str, *, severity: Severity = Severity.INCONCLUSIVE) -> Finding:
    return Finding(f"{level}.stopped", severity, f"level {level}", f"not run: {why}", "", remedy)


def _recorded(output: Path, part: str = "source") -> Mapping[str, Any] | None:
    """What a conversion recorded of its source, or of its result; None where nothing can be read."""
    try:
        found = json.loads((output / PROVENANCE).read_bytes())[part]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _reference_hint(output: Path) -> str:
    name = (_recorded(output) or {}).get("name")
    made_of = f"; {PROVENANCE} says it was made of {name}" if name else ""
    return f"--reference MODEL, a directory, a hub name, or a file of `g4convert reference`{made_of}"


def _provenance(asked: Request) -> Iterable[Finding]:
    """Whether the output says of itself that it was made of this reference."""
    source = _recorded(asked.output)
    if asked.reference is None:
        return
    if source is None or not isinstance(source.get("files"), dict):
        text = f"no {PROVENANCE} that says so"
        yield Finding("static.provenance", Severity.INFO, PROVENANCE, text, "made of this reference")
        return
    files = json.dumps(source["files"], sort_keys=True).encode()
    same = hashlib.sha256(files).hexdigest() == _digest(asked)
    severity = Severity.PASS if same else Severity.WARN
    found = "made of this reference" if same else f"made of another checkpoint, named {source.get('name')}"
    remedy = "" if same else "pass the checkpoint it was made of; other findings may follow from this"
    yield Finding("static.provenance", severity, PROVENANCE, found, "made of this reference", remedy)


def _digest(asked: Request) -> str:
    """Of the checkpoint that the reference is, or was stored from."""
    if asked.source is not None:
        return Checkpoint.open(asked.source).digest()
    from g4convert.verification.logits.capture import Captured  # noqa: PLC0415 -- brings torch

    assert asked.reference is not None  # noqa: S101 -- asked only with one
    return str(Captured.open(asked.reference).facts.get("source", ""))
