"""Results of a verification: a `Finding` for each check of each subject, collected in a `Report`.

A failed check is a finding, not an exception. A passed check is a finding, too, so that a report says what it proves.
The verdict is the worst severity:

    FAIL > INCONCLUSIVE > WARN > PASS        INFO does not count
    exit 1   exit 4         exit 0, or 1 where warnings are strict

A report with only INFO findings, or none, has checked nothing: INCONCLUSIVE.

Values only; the code that prints tables, pages or JUnit XML reads these.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from g4convert import __version__

SCHEMA_VERSION: Final = 1
"""Schema version of `Report.to_dict`; it goes up when a key changes its meaning or is removed."""

_NUMBERS: Final = re.compile(r"\d+")


class Severity(StrEnum):
    """Severity of a finding."""

    PASS = "pass"  # noqa: S105 -- not a password
    """Checked and right."""
    INFO = "info"
    """Worth knowing; neither right nor wrong."""
    WARN = "warn"
    """Works, but not as well as possible, or not everywhere."""
    INCONCLUSIVE = "inconclusive"
    """Undecided: too much noise, or nothing to measure."""
    FAIL = "fail"
    """Wrong."""


_RANK: Final = (Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN, Severity.PASS)


class Detail(StrEnum):
    """Cause of a finding, for checks with several causes that other code must distinguish."""

    LOST = "a part of a packed module is not there"
    HEAD_ALONE = "the embedding is stored as its tied head alone"
    NO_START = "a file beside the weights cannot be read"
    NO_PATTERN = "an entry is no regular expression"
    ORDER = "columns are in another order than groups"
    ASYMMETRIC = "weights have zero points"
    ACTIVATIONS = "inputs are quantized in a way that SGLang does not know"
    CAST = "words of another dtype, with the same values"
    INPUTS = "inputs are quantized as they come, in a way that transformers alone knows"
    SCALAR = "a scale of activations has no dimension"
    GROUP = "a config group is not how modules are stored that an engine builds by it"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check of one subject, or of several subjects that `join_alike` joined.

    Args:
        code: name of the check, `level.check`; stable, and described in docs/reference/checks.md.
        severity: severity of the finding.
        subject: the tensor, module, file, entry or metric that was checked.
        found: the value found.
        expected: the value expected.
        remedy: step that mends it; empty if unknown.
        detail: cause of the finding, if other code must distinguish it.
        count: number of subjects.
        total: number of modules that were checked, of which `count` are subjects; None if not counted.
        first: first of several subjects.
    """

    code: str
    severity: Severity
    subject: str
    found: str
    expected: str
    remedy: str = ""
    detail: Detail | None = None
    count: int = 1
    total: int | None = None
    first: str = ""

    @property
    def told(self) -> str:
        """The value found, with the number of subjects if there are several."""
        if self.count == 1:
            return self.found
        share = "all" if self.count == self.total else f"{self.count} of"
        return f"{self.found} ({share} {'them' if self.total is None else f'{self.total} modules'}, first {self.first})"

    @property
    def level(self) -> str:
        """Level of the check, the first part of `code`."""
        return self.code.partition(".")[0]

    @property
    def is_stopped(self) -> bool:
        """True if the finding says that a level, or its comparison, did not run."""
        return self.code == f"{self.level}.stopped"

    @property
    def line(self) -> str:
        """The finding in one line, without code and remedy."""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.subject}: {self.told}{expected}"

    def to_dict(self) -> dict[str, str]:
        """Return the finding as JSON."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "subject": self.subject,
            "found": self.told,
            "expected": self.expected,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class LevelResult:
    """Result of one level.

    Args:
        findings: every finding of the level.
        metrics: measured numbers behind them, as JSON; empty if the level could not run.
    """

    findings: tuple[Finding, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a verification.

    Args:
        findings: findings, in the order of the checks.
        levels: levels that ran.
        metrics: measurements, as nested mappings of JSON values.
        output: the verified checkpoint, as the user named it.
        reference: the original that it was compared with; None without a comparison.
    """

    findings: tuple[Finding, ...]
    levels: tuple[str, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    reference: str | None = None

    def __repr__(self) -> str:
        """Return the output, the verdict and the number of findings, as all findings would fill pages."""
        return f"Report({self.output!r}, {self.verdict.value}, findings={len(self.findings):,})"

    @property
    def verdict(self) -> Severity:
        """The worst severity, INFO aside; INCONCLUSIVE if there is no other."""
        severities = {finding.severity for finding in self.findings}
        return next((severity for severity in _RANK if severity in severities), Severity.INCONCLUSIVE)

    def exit_code(self, *, strict: bool) -> int:
        """Return 0 for pass, 1 for fail or 4 for inconclusive; with `strict`, a warning is a failure."""
        warned = any(finding.severity is Severity.WARN for finding in self.findings)
        if self.verdict is Severity.FAIL or (strict and warned):
            return 1
        return 4 if self.verdict is Severity.INCONCLUSIVE else 0

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of a severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; numbers that JSON lacks become the texts `inf`, `-inf` and `nan`."""
        counts = Counter(finding.severity for finding in self.findings)
        return {
            "schema_version": SCHEMA_VERSION,
            "g4convert": __version__,
            "output": self.output,
            "reference": self.reference,
            "levels": [*self.levels],
            "verdict": self.verdict.value,
            "counts": {severity.value: counts[severity] for severity in Severity},
            "findings": [finding.to_dict() for finding in self.findings],
            "metrics": _replace_non_finite(self.metrics),
        }

    def to_json(self) -> str:
        """Return the report as JSON text, as `--json` prints it."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def join_alike(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, with equal findings on subjects that differ only in their numbers joined into one.

    `layers.0.mlp.up_proj` and `layers.1.mlp.up_proj` become `layers.*.mlp.up_proj`, with their count and the first;
    a number that all subjects share stays. The order is that of each group's first finding.
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        kind = _NUMBERS.sub("*", finding.subject)
        key = (finding.code, finding.severity.value, kind, finding.told, finding.expected, finding.remedy)
        groups.setdefault(key, []).append(finding)
    for same in groups.values():
        subjects = list(dict.fromkeys(finding.subject for finding in same))
        first = same[0]
        if len(subjects) == 1:
            yield first
            continue
        yield replace(first, subject=_common_subject(subjects), count=len(subjects), first=subjects[0])


def _common_subject(subjects: list[str]) -> str:
    """Return the common form of subjects, with `*` for numbers in which they differ."""
    columns = zip(*(_NUMBERS.findall(subject) for subject in subjects), strict=True)
    numbers = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return _NUMBERS.sub(lambda _: next(numbers), subjects[0])


def _replace_non_finite(value: object) -> object:
    """Return nested values with texts in place of floats that JSON lacks."""
    match value:
        case Mapping():
            return {str(key): _replace_non_finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_replace_non_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
