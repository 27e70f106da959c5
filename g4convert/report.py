"""Results of a verification: one `Finding` for each thing that was looked at, gathered in a `Report`.

A check that fails is a finding, not an exception; a check that passes is one, too, so that a report says what
it proves. The verdict is the worst of them:

    FAIL > INCONCLUSIVE > WARN > PASS        INFO does not count
    exit 1   exit 4         exit 0, or 1 where warnings are strict

A report in which nothing passed and nothing failed has looked at nothing: INCONCLUSIVE.

Values only; whoever prints tables, pages or JUnit XML reads these.
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

__all__ = ["SCHEMA_VERSION", "Detail", "Finding", "Report", "Severity", "grouped"]

SCHEMA_VERSION: Final = 1
"""Schema version of `Report.to_dict`; it goes up when a key changes its meaning or is removed."""

_NUMBERS: Final = re.compile(r"\d+")


class Severity(StrEnum):
    """Severity of a finding."""

    PASS = "pass"  # noqa: S105 -- not a password
    """Looked at, and as it must be."""
    INFO = "info"
    """Worth knowing; neither right nor wrong."""
    WARN = "warn"
    """Works, but not as well as it could, or not everywhere."""
    INCONCLUSIVE = "inconclusive"
    """Could not be told: too much noise, or something to measure is missing."""
    FAIL = "fail"
    """Wrong."""


_RANK: Final = (Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN, Severity.PASS)


class Detail(StrEnum):
    """Subject of a finding among several of one check, where other code must tell them apart."""

    LOST = "a part of a packed module is not there"
    NO_PATTERN = "an entry is no regular expression"
    ORDER = "columns are in another order than groups"
    ASYMMETRIC = "weights have zero points"
    ACTIVATIONS = "inputs and outputs are static int8"
    SCALAR = "a scale of activations has no dimension"
    GROUP = "a config group is not how modules are stored that an engine builds by it"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        code: name of the check, `level.check`; stable, and described in docs/reference/checks.md.
        severity: weight of the finding.
        subject: the tensor, module, file, entry or metric it is about.
        found: value that is there.
        expected: value that should be there.
        remedy: step to take, where one is known.
        detail: subject among several of the check, where other code must know.
        count: number of subjects.
        total: number of modules that it is of, where that is counted.
        first: the first of several subjects.
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
        """The value found, and the number of subjects."""
        if self.count == 1:
            return self.found
        share = "all" if self.count == self.total else f"{self.count} of"
        return f"{self.found} ({share} {'them' if self.total is None else f'{self.total} modules'}, first {self.first})"

    @property
    def level(self) -> str:
        """The first part of the code."""
        return self.code.partition(".")[0]

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
class Report:
    """Everything a verification has to say.

    Args:
        findings: in the order they were made.
        levels: levels that ran.
        metrics: measurements, as nested mappings of JSON values.
        output: the verified checkpoint, as it was named.
        reference: the original it was compared with; None without.
    """

    findings: tuple[Finding, ...]
    levels: tuple[str, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    reference: str | None = None

    @property
    def verdict(self) -> Severity:
        """The worst that was found; INCONCLUSIVE where nothing was proved."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in _RANK if severity in found), Severity.INCONCLUSIVE)

    def exit_code(self, *, strict: bool) -> int:
        """0 pass, 1 fail, 4 inconclusive; where warnings are strict, one is a failure."""
        warned = any(finding.severity is Severity.WARN for finding in self.findings)
        if self.verdict is Severity.FAIL or (strict and warned):
            return 1
        return 4 if self.verdict is Severity.INCONCLUSIVE else 0

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that count so."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON; numbers that JSON has not are the texts `inf`, `-inf` and `nan`."""
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
            "metrics": _finite(self.metrics),
        }

    def to_json(self) -> str:
        """The text of a `--json` file."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def grouped(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that say the same of modules that differ in their numbers only, as one each.

    `layers.0.mlp.up_proj`, `layers.1.mlp.up_proj` become `layers.*.mlp.up_proj`, with their count and the first;
    a number that all share stays. In the order of each group's first.
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        kind = _NUMBERS.sub("*", one.subject)
        key = (one.code, one.severity.value, kind, one.told, one.expected, one.remedy)
        groups.setdefault(key, []).append(one)
    for same in groups.values():
        subjects = list(dict.fromkeys(one.subject for one in same))
        first = same[0]
        if len(subjects) == 1:
            yield first
            continue
        yield replace(first, subject=_common(subjects), count=len(subjects), first=subjects[0])


def _common(subjects: list[str]) -> str:
    """The subjects as one, `*` for the numbers in which they differ."""
    columns = zip(*(_NUMBERS.findall(subject) for subject in subjects), strict=True)
    numbers = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return _NUMBERS.sub(lambda _: next(numbers), subjects[0])


def _finite(value: object) -> object:
    """Nested values with texts for the floats that JSON has not."""
    match value:
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
