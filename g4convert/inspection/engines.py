"""`g4convert check`: predicts from the headers of any checkpoint which engines load it.

    check_stored   names, shapes, dtypes, config: faults of the checkpoint itself
    spare_values   the values of a tied head that is stored, and of biases that no Linear has
    weight_files   names of weight files that an engine does not look for
    needed_files   a tokenizer, a processor, a chat template that is missing
    verdicts       each engine and number of GPUs: loads, loads with a caveat, or does not load

A finding of `check_stored` that breaks an engine becomes a reason of its verdict: a config group that differs from the
stored scheme, a missing tensor that the engine does not notice.

    engines.NAME   FAIL   an engine of `--engine` cannot load it (at TP 1, or the requested sizes)
                   WARN   another engine cannot load it; FAIL if no engine can
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.engines import CONTRACTS
from g4convert.engines.advice import with_remedies
from g4convert.engines.contract import Contract, OnUnknown
from g4convert.engines.reason import Reason
from g4convert.engines.refused_formats import refuse_other_formats
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.stored import StoredCheckpoint
from g4convert.engines.verdicts import TENSOR_PARALLEL, Loads, Verdict, verdicts
from g4convert.errors import UsageError
from g4convert.gemma4 import Architecture, droppable, is_drafter
from g4convert.inspection.drafter import paired
from g4convert.inspection.file_faults import FileFault
from g4convert.inspection.fix import CURABLE, is_fixable
from g4convert.inspection.needed_files import missing_files, missing_template
from g4convert.inspection.weight_files import weights_as_read
from g4convert.report import Detail, Finding, Report, Severity
from g4convert.run_options import check_run
from g4convert.suggestions import no_such
from g4convert.verification.static.level import REQUIRED_ENGINES, check_stored
from g4convert.verification.static.section import HINDERS
from g4convert.verification.weights.spare import spare_values

_ANY_ENGINE: Final = {
    "static.scheme", "static.packed", "static.scale", "static.shape", "static.quantization_config",
}  # fmt: skip
"""Codes of findings that break every engine."""
_OF_SOME: Final[Mapping[str, tuple[Topic, *tuple[str, ...]]]] = {
    "static.cache_scales": (Topic.NAMES, "transformers"),
    Detail.NO_START: (Topic.FILES, "vllm", "sglang"),
    Detail.HEAD_ALONE: (Topic.MISSING, "vllm", "sglang"),
    Detail.ASYMMETRIC: (Topic.NAMES, "transformers"),
    Detail.SCALAR: (Topic.NAMES, "transformers"),
    Detail.ACTIVATIONS: (Topic.STORED, "sglang"),
    Detail.CAST: (Topic.STORED, "transformers"),
    Detail.INPUTS: (Topic.STORED, "vllm", "sglang"),
    "static.class": (Topic.STORED, "vllm"),
    "static.fused": (Topic.STORED, "vllm", "sglang"),
}
"""Code or detail of a finding that breaks some engines -> topic of the remark, and these engines."""


_FIX: Final = Remedy("`g4convert check OUT --fix` corrects it")


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Requirements on a checkpoint.

    Args:
        directory: the checkpoint.
        engines: engines that must load it; empty judges all engines, of which one must load it.
        tps: tensor parallel sizes at which it must load; empty judges the default sizes, and it must load at 1.
        target: model that the checkpoint, an MTP assistant, drafts for; None without one.
    """

    directory: Path
    engines: tuple[str, ...] = ()
    tps: tuple[int, ...] = ()
    target: Path | None = None

    @classmethod
    def of(
        cls, directory: Path, engines: Collection[str] = (), tps: Collection[int] = (), target: Path | None = None
    ) -> "CheckRequest":
        """Make the requirements from arguments of the command line.

        Raises:
            UsageError: an unknown engine, or a size out of range.
        """
        check_run(tp=tps)
        if isinstance(engines, str):
            raise UsageError(f"--engine {engines}: expected a list of engines")
        if odd := [name for name in engines if name not in CONTRACTS]:
            raise no_such("--engine", odd[0], CONTRACTS)
        return cls(directory, tuple(dict.fromkeys(engines)), tuple(dict.fromkeys(tps)), target)

    @property
    def judged(self) -> tuple[str, ...]:
        """Engines that are judged."""
        return self.engines or tuple(CONTRACTS)

    @property
    def required(self) -> tuple[str, ...]:
        """Engines that fail the check if they misread `targets` or `ignore`; other engines only cause warnings."""
        return self.engines or REQUIRED_ENGINES


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of `check`.

    Args:
        report: findings.
        verdicts: verdict of each engine on each number of GPUs.
        packed: number of packed modules.
        is_fixable: True if `check --fix` would correct the config.
        is_drafter: True for an MTP assistant, which runs beside the model it drafts for.
    """

    report: Report
    verdicts: tuple[Verdict, ...]
    packed: int
    is_fixable: bool = False
    is_drafter: bool = False

    def __repr__(self) -> str:
        """Return the checkpoint, the verdict and what each engine does, as all findings would fill pages."""
        engines = ", ".join(f"{one.label} tp={one.tp}: {one.loads.value}" for one in self.verdicts)
        return f"Checked({self.report.output!r}, {self.report.verdict.value}, {engines})"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON: the report, `packed_modules` and `engines`."""
        engines = [one.to_dict() for one in self.verdicts]
        return {**self.report.to_dict(), "packed_modules": self.packed, "engines": engines}


def check(asked: CheckRequest) -> Checked:
    """Judge a checkpoint.

    Raises:
        InputError: not a checkpoint, unreadable files, or not a Gemma 4.
        UnsupportedError: weights in another format than pack-quantized of compressed-tensors.
        UsageError: a target is given, and the checkpoint is no MTP assistant or the target is an assistant.
    """
    out = Checkpoint.open(asked.directory)
    refuse_other_formats(out)
    stored = StoredCheckpoint.of(out, Architecture.from_config(out.config))
    static = tuple(check_stored(stored, tp=(), engines=asked.required))
    static += tuple(spare_values(stored.contents, stored.checkpoint, "engines"))
    architecture = stored.contents.architecture
    faults = (*weights_as_read(out), *missing_files(out, architecture))
    faults = tuple(one for one in faults if not set(one.engines).isdisjoint(asked.judged))
    static += (*(one.finding(asked.required) for one in faults), *missing_template(out, architecture))
    found = tuple(_with_files(one, faults) for one in _verdicts(stored, asked, static))
    fixable = is_fixable(stored, static, asked.required)
    if fixable:
        static = tuple(_offered(one) for one in static)
        found = tuple(replace(one, problems=tuple(map(_mendable, one.problems))) for one in found)
    findings, levels = [*static, *_verdict_findings(found, asked)], ["static", "engines"]
    if asked.target is not None:
        findings += paired(out, Checkpoint.open(asked.target))
        levels.append("assistant")
    against = None if asked.target is None else str(asked.target)
    report = Report(tuple(findings), tuple(levels), {}, str(asked.directory), against)
    contents = stored.contents
    packed = len(contents.packed) + len(contents.fused_packed) + len(contents.torn)
    return Checked(report, found, packed, fixable, is_drafter(out.config.get("model_type")))


def _offered(finding: Finding) -> Finding:
    """Return a finding, with `--fix` added to its remedy if `--fix` corrects it."""
    if finding.code not in CURABLE or finding.severity not in {Severity.FAIL, Severity.WARN}:
        return finding
    return replace(finding, remedy="; ".join(filter(None, (finding.remedy, str(_FIX)))))


def _mendable(remark: Remark) -> Remark:
    """Return a problem, with `--fix` as its remedy if the config causes it."""
    return replace(remark, ways=(_FIX,)) if remark.topic in {Topic.FORM, Topic.STORED} else remark


def _verdicts(stored: StoredCheckpoint, asked: CheckRequest, static: Iterable[Finding]) -> tuple[Verdict, ...]:
    wrong = [one for one in static if one.severity in {Severity.FAIL, Severity.WARN}]
    found = verdicts(stored.weights, asked.judged, asked.tps or TENSOR_PARALLEL)
    told = with_remedies(stored.weights, found)
    return tuple(_with_faults(_of_another_command(verdict), wrong, stored.contents.architecture) for verdict in told)


def _with_files(verdict: Verdict, faults: Iterable[FileFault]) -> Verdict:
    """Return a verdict with the faults of files that its engine has."""
    own = [one for one in faults if verdict.engine in one.engines]
    problems = (*verdict.problems, *(one.remark for one in own if not one.is_harmless))
    caveats = (*verdict.caveats, *(one.remark for one in own if one.is_harmless))
    return replace(verdict, problems=problems, caveats=caveats)


def _of_another_command(verdict: Verdict) -> Verdict:
    """Return a verdict whose remedies say to quantize again, as their options belong to `quantize`."""
    problems = (replace(one, ways=_again(one.ways)) for one in verdict.problems)
    return replace(verdict, problems=tuple(problems), remedies=_again(verdict.remedies))


def _again(ways: Iterable[Remedy]) -> tuple[Remedy, ...]:
    return tuple(replace(way, again=True) for way in ways)


def _with_faults(verdict: Verdict, wrong: Iterable[Finding], architecture: Architecture) -> Verdict:
    """Return a verdict with the faults of the checkpoint itself added."""
    contract = CONTRACTS[verdict.engine]
    remarks = _merged(remark for one in wrong if (remark := _remark(one, contract, architecture)))
    kept = [one for one in verdict.problems if one.topic is not Topic.MISSING]
    problems = (*kept, *(one for one in remarks if one.topic is not Topic.NAMES))
    caveats = (*verdict.caveats, *(one for one in remarks if one.topic is Topic.NAMES))
    return replace(verdict, problems=tuple(dict.fromkeys(problems)), caveats=tuple(dict.fromkeys(caveats)))


def _remark(finding: Finding, contract: Contract, architecture: Architecture) -> Remark | None:
    """Return a finding about the checkpoint as a remark on one engine; None if the finding does not affect it."""
    if finding.code == "static.names":
        return _unread(finding, contract, architecture)
    code, text = finding.code, finding.found
    topic: Topic | None = None
    if finding.detail is Detail.GROUP:
        return None  # the verdict already has this problem
    if found := _OF_SOME.get(finding.detail or code):
        topic = found[0] if contract.engine in found[1:] else None
    elif code == "static.quantization_config" and finding.subject in HINDERS:
        topic = Topic.STORED if contract.engine in HINDERS[finding.subject] else None
    elif finding.severity is not Severity.FAIL:
        return None
    elif code == "static.tensors" or finding.detail is Detail.LOST:
        topic, text = Topic.MISSING, f"{text}: {contract.on_missing}"
    elif code in {"static.unknown", "static.k_eq_v"} and contract.stops_at(finding.subject):
        topic, text = Topic.UNKNOWN, f"{text}: {contract.on_unknown}"
    elif finding.detail is Detail.NO_PATTERN:
        topic = Topic.FORM  # every engine compiles the entry when it builds its modules
    elif code in _ANY_ENGINE or (code == "static.weight_shape" and contract.engine == "transformers"):
        topic = Topic.STORED  # the other engines load `weight_shape` and do not read it
    ways = (Remedy(finding.remedy),) if finding.remedy else ()
    return Remark(topic, finding.subject, Reason(text), ways) if topic else None


def _unread(finding: Finding, contract: Contract, architecture: Architecture) -> Remark | None:
    """Return a remark on a tensor whose name an engine does not read; None if it does, or needs no such tensor."""
    if contract.spellings.has(finding.subject, finding.expected, architecture):
        return None
    unknown, lost = contract.on_unknown is OnUnknown.RAISES, finding.expected not in droppable(architecture)
    if not unknown and not lost:
        return None
    topic, fate = (Topic.UNKNOWN, str(contract.on_unknown)) if unknown else (Topic.MISSING, str(contract.on_missing))
    return Remark(topic, finding.subject, Reason(f"a name that it does not read: {fate}"), (Remedy(finding.remedy),))


def _merged(remarks: Iterable[Remark]) -> list[Remark]:
    """Join remarks with the same topic and reason into one that names the first module and counts the others."""
    same: dict[tuple[Topic, Reason], list[Remark]] = {}
    for one in remarks:
        same.setdefault((one.topic, one.reason), []).append(one)
    return [
        replace(many[0], subject=f"{many[0].subject} and {len(many) - 1} more" if many[1:] else many[0].subject)
        for many in same.values()
    ]


def _verdict_findings(found: Collection[Verdict], asked: CheckRequest) -> Iterator[Finding]:
    """Yield the verdicts as findings: refusals by requested engines and sizes fail, others warn or inform."""
    gate = asked.tps or (1,)
    at_gate = [one for one in found if one.tp in gate or one.engine == "transformers"]
    hopeless = all(one.loads is Loads.NO for one in at_gate)
    for one in found:
        gated = one in at_gate
        code, subject = f"engines.{one.engine}", f"{one.label}, TP {one.tp}"
        for remark in one.told:
            severity = Severity.INFO
            if one.loads is Loads.NO and gated:
                severity = Severity.FAIL if asked.engines or hopeless else Severity.WARN
            yield Finding(code, severity, subject, remark.line, "", remark.remedy)
        if one.loads is not Loads.NO:
            yield Finding(code, Severity.PASS, subject, "; ".join((f"loads: {one.loads}", *one.kernels)), "")
