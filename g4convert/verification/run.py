"""The pipeline of `g4convert verify`: one level after the other, as far as asked and as far as it makes sense.

    static --> weights --> logits
       |  |       |           |
       |  |       |           the strict loader refuses: a finding, and the end
       |  |       no checkpoint to compare with: nothing to do, and said
       |  +--> engine         of all levels the only one that needs neither weights nor logits
       files that cannot be opened: a finding for each level that could not run, and the end

A level that could not run is INCONCLUSIVE, never passed over: a report says what was not looked at.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.record import RECORD, part, record
from g4convert.errors import UsageError
from g4convert.gemma4 import quantized_format
from g4convert.report import Finding, Report, Severity
from g4convert.request import Level, Request
from g4convert.verification.changed import changed, stamps
from g4convert.verification.static.level import check_static, open_output

if TYPE_CHECKING:
    from g4convert.forward.candidate import Candidate
    from g4convert.progress import Quiet

__all__ = ["verify"]


def verify(
    asked: Request,
    *,
    progress: "Quiet | None" = None,
    say: Callable[[str], None] = lambda _: None,
    candidate: "Callable[[Path], Candidate] | None" = None,
    written: bool = False,
) -> Report:
    """Verify a quantized checkpoint.

    Args:
        asked: checkpoint, reference and last level.
        progress: told of every piece that the level `weights` has read, and how far each step of `logits` is.
        say: told what is done next.
        candidate: gives the path that runs, for the level `logits`; by default the packed weights in this process.
        written: the output was written, read back and hashed by this process a moment ago: hashes are not made again,
            and the decoder is held against recorded answers.

    Returns:
        Every finding and measured number.

    Raises:
        UsageError: the level needs a reference, a profile is not valid, prompts do not suit the model.
        InputError: no output, or a reference that is none.
        EnvironmentFault: out of memory.
    """
    depth = asked.depth
    before = stamps(asked.output, asked.reference)
    _check_request(asked)
    directories = _Directories.open(asked)
    out, source = directories.out, directories.source
    _check_directories(asked, directories)
    say("static: names, shapes, config and files")
    findings = [*(directories.broken if out is None else check_static(out, source)), *_provenance(asked, source)]
    ran = [Level.STATIC]
    metrics: dict[str, Any] = {}
    findings += [] if out is None else [*_not_quantized(out)]
    later = [Level.ENGINE] if depth is Level.ENGINE else [one for one in _FILES if depth.includes(one)]
    if out is None:
        findings += (_stopped(level, "the files cannot be opened", _SEE_STATIC) for level in later)
        later = []
    if out is not None and Level.WEIGHTS in later:
        from g4convert.verification.weights.hashes import check_hashes, hashed  # noqa: PLC0415 -- static reads no weights

        findings += hashed(out) if written else check_hashes(out)
        if source is None:
            why = "a stored reference holds no weights" if asked.is_captured else "there is no reference"
            severity = Severity.INCONCLUSIVE if depth is Level.WEIGHTS else Severity.INFO
            remedy = "pass the checkpoint itself: --reference MODEL"
            findings.append(_stopped(Level.WEIGHTS, why, remedy, severity=severity))
        else:
            from g4convert.verification.weights.level import check_weights  # noqa: PLC0415 -- brings torch; static needs none

            say("weights: every value against its source")
            rows: list[dict[str, Any]] = []
            findings += check_weights(out, source, progress=progress, table=rows, recorded=written)
            metrics["weights"] = {"tensors": rows}
            ran.append(Level.WEIGHTS)
    if out is not None and Level.LOGITS in later:
        from g4convert.verification.logits.level import run_logits  # noqa: PLC0415 -- brings torch and transformers

        judged = run_logits(asked, out, source, say=say, progress=progress, candidate=candidate)
        findings += judged.findings
        metrics |= judged.metrics
        ran += [Level.LOGITS] if judged.metrics else []
    if out is not None and Level.ENGINE in later:
        from g4convert.verification.engine.level import run_engine  # noqa: PLC0415 -- brings torch and transformers

        served = run_engine(asked, out, say=say)
        findings += served.findings
        metrics |= served.metrics
        ran += [Level.ENGINE] if served.metrics else []
    findings += changed(before, stamps(asked.output, asked.reference))
    named = None if asked.reference is None else str(asked.reference)
    return Report(tuple(findings), tuple(ran), metrics, str(asked.output), named)


_FILES: Final = (Level.WEIGHTS, Level.LOGITS)
"""Levels that look at the checkpoint itself; an engine is asked alone, since that takes long enough."""
_SEE_STATIC: Final = "see the findings of level static"


@dataclass(frozen=True, slots=True)
class _Directories:
    """Checkpoints to compare, each directory opened once.

    Args:
        out: the output; None where its files cannot be opened.
        broken: reasons why one is not open.
        source: the checkpoint that it is compared with; None without one.
    """

    out: Checkpoint | None
    broken: tuple[Finding, ...]
    source: Checkpoint | None

    @classmethod
    def open(cls, asked: Request) -> "_Directories":
        """Open what was asked for.

        Raises:
            InputError: no output directory, or a source that is none.
            UnsupportedError: weights of another format.
        """
        source = None if asked.source is None else Checkpoint.open(asked.source)
        match open_output(asked.output):
            case Checkpoint() as out:
                return cls(out, (), source)
            case broken:
                return cls(None, broken, source)


def _check_request(asked: Request) -> None:
    """Refuse what needs no look at a directory."""
    alone = asked.depth in {Level.STATIC, Level.ENGINE}
    if asked.depth is Level.LOGITS:
        from g4convert.verification.gates import load  # noqa: PLC0415 -- brings yaml and pydantic

        alone = load(asked.judged_by).compares == "parity"
    if asked.reference is None and not alone:
        raise UsageError(f"level {asked.depth} needs a reference", hint=_reference_hint(asked.output))
    if asked.settings.device != "cpu":
        from g4convert.devices import torch_device  # noqa: PLC0415 -- brings torch

        torch_device(asked.settings.device)
    if asked.is_captured and asked.prompts is not None:
        raise UsageError("a stored reference has its own prompts", hint="leave --prompts out, or pass the model")


def _check_directories(asked: Request, directories: _Directories) -> None:
    """Refuse what does not suit the directories, before any work."""
    _check_order(asked, directories)
    if asked.engine is not None and directories.out is not None:
        from g4convert.verification.engine.level import look_for_engine  # noqa: PLC0415 -- brings torch and transformers

        look_for_engine(asked)
    if asked.prompts is not None and (directories.source or directories.out) is not None:
        from g4convert.verification.logits.level import conversations  # noqa: PLC0415 -- brings torch and transformers

        conversations(asked.prompts, asked.source or asked.output)


def _check_order(asked: Request, directories: _Directories) -> None:
    """Refuse a quantized reference of an output that is not quantized: the two are swapped."""
    out, reference = directories.out, directories.source
    if out is None or reference is None or "quantization_config" not in reference.config:
        return
    if "quantization_config" not in out.config:
        raise UsageError(
            f"{asked.output} is not quantized and {asked.source} is: the two are swapped",
            hint=f"g4convert verify {quote(str(asked.source))} --reference {quote(str(asked.output))}",
        )


def _stopped(level: Level, why: str, remedy: str, *, severity: Severity = Severity.INCONCLUSIVE) -> Finding:
    return Finding(f"{level}.stopped", severity, f"level {level}", f"not run: {why}", "", remedy)


def _not_quantized(out: Checkpoint) -> Iterable[Finding]:
    """Yield a finding that there is nothing to verify; a drafter may be kept as it is."""
    plain = quantized_format(out.tensors) is None and all(t.info.dtype.is_weight for t in out.tensors.values())
    if plain and not str(out.config.get("model_type")).endswith("assistant"):
        found, remedy = "none is quantized: this is a plain checkpoint", "`g4convert quantize` makes a quantized one"
        yield Finding("static.quantized", Severity.INCONCLUSIVE, "weights", found, "a quantized checkpoint", remedy)


def _recorded(output: Path) -> Mapping[str, Any] | None:
    """Return what a conversion recorded of its source; None where nothing can be read."""
    return part(record(output), "source") or None


def _reference_hint(output: Path) -> str:
    name = (_recorded(output) or {}).get("name")
    made_of = f"; {RECORD} says it was made of {name}" if name else ""
    return f"--reference MODEL, a directory, a hub name, or a file of `g4convert reference`{made_of}"


def _provenance(asked: Request, reference: Checkpoint | None) -> Iterable[Finding]:
    """Check that the output says of itself that it was made of this reference."""
    source = _recorded(asked.output)
    if asked.reference is None:
        return
    if source is None or not isinstance(source.get("files"), dict):
        text = f"no {RECORD} that says so"
        yield Finding("static.provenance", Severity.INFO, RECORD, text, "made of this reference")
        return
    files = json.dumps(source["files"], sort_keys=True).encode()
    same = hashlib.sha256(files).hexdigest() == _digest(asked, reference)
    severity = Severity.PASS if same else Severity.WARN
    found = "made of this reference" if same else f"made of another checkpoint, named {source.get('name')}"
    remedy = "" if same else "pass the checkpoint it was made of; other findings may follow from this"
    yield Finding("static.provenance", severity, RECORD, found, "made of this reference", remedy)


def _digest(asked: Request, reference: Checkpoint | None) -> str:
    """The digest of the checkpoint that the reference is, or was stored from."""
    if reference is not None:
        return reference.digest()
    from g4convert.verification.logits.capture import Captured  # noqa: PLC0415 -- brings torch

    assert asked.reference is not None  # noqa: S101 -- asked only with one
    return str(Captured.open(asked.reference).facts.get("source", ""))
