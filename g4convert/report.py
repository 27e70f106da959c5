"""Results of a verification: one `Finding` for each thing that was looked at, gathered in a `Report`.

A check that fails is a finding, not an exception; a check that passes is one, too, so that a report says what
it proves. The verdict is the worst of them:

    FAIL > INCONCLUSIVE > WARN > PASS        INFO does not count
    exit 1   exit 4         exit 0, or 1 where warnings are strict

A report in which nothing passed and nothing failed has looked at nothing: INCONCLUSIVE.

Values only; whoever prints tables or pages reads these. JUnit XML is made with the standard library: one suite
for each level, one testcase for each code and subject.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final
from xml.etree import ElementTree as ET

from g4convert import __version__

__all__ = ["SCHEMA_VERSION", "Detail", "Finding", "Report", "Severity", "grouped"]

SCHEMA_VERSION: Final = 1
"""Schema version of `Report.to_dict`; it goes up when a key changes its meaning or is removed."""

_ILLEGAL_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
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
    """Which of several things that a check looks at a finding is about, where others must tell them apart."""

    LOST = "a part of a packed module is not there"
    NO_PATTERN = "an entry is no regular expression"
    ORDER = "columns are in another order than groups"
    ASYMMETRIC = "weights have zero points"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        code: which check, `level.check`; stable, and described in docs/reference/checks.md.
        severity: how it counts.
        subject: the tensor, module, file, entry or metric it is about.
        found: what is there.
        expected: what should be there.
        remedy: what to do about it, where that is known.
        detail: which of several things it is about, where others must know.
        count: how many subjects it is about.
        total: of how many modules, where that is counted.
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
        """What is there, and of how many subjects."""
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
        """In one line, without code and remedy."""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.subject}: {self.told}{expected}"

    def to_dict(self) -> dict[str, str]:
        """As JSON."""
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
        levels: which levels ran.
        metrics: what was measured, as nested mappings of JSON values.
        output: the verified checkpoint, as it was named.
        reference: what it was compared with; None without.
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
        """As JSON; numbers that JSON has not are the texts `inf`, `-inf` and `nan`."""
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

    def junit(self, *, strict: bool = False) -> str:
        """JUnit XML: FAIL is a failure, INCONCLUSIVE skipped, the rest passes with its text as output.

        Args:
            strict: a warning is a failure, too.
        """
        root = ET.Element("testsuites", name="g4convert verify")
        for level in dict.fromkeys(finding.level for finding in self.findings):
            cases = list(_cases(finding for finding in self.findings if finding.level == level))
            suite = ET.SubElement(root, "testsuite", name=f"g4convert.{level}")
            for case in cases:
                _add_case(suite, case, strict=strict)
            _count(suite)
        _count(root)
        ET.indent(root)
        text = ET.tostring(root, encoding="unicode")
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


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


def _cases(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """The findings of each testcase: same code, same subject."""
    cases: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        cases.setdefault((one.code, one.subject), []).append(one)
    yield from cases.values()


def _add_case(suite: ET.Element, findings: list[Finding], *, strict: bool) -> None:
    first = findings[0]
    case = ET.SubElement(suite, "testcase", classname=_text(first.code), name=_text(first.subject), time="0")
    bad = {Severity.FAIL, Severity.WARN} if strict else {Severity.FAIL}
    failures = [one for one in findings if one.severity in bad]
    unclear = [one for one in findings if one.severity is Severity.INCONCLUSIVE]
    if failures:
        element = ET.SubElement(case, "failure", type=_text(first.code), message=_text(failures[0].line))
        element.text = _lines(failures)
    elif unclear:
        ET.SubElement(case, "skipped", message=_text("; ".join(one.line for one in unclear)))
    rest = [one for one in findings if one not in failures and one not in unclear]
    if rest:
        ET.SubElement(case, "system-out").text = _lines(rest)


def _lines(findings: Iterable[Finding]) -> str:
    remedied = ((one, f" ({one.remedy})" if one.remedy else "") for one in findings)
    return _text("\n".join(f"{one.severity.value}: {one.line}{remedy}" for one, remedy in remedied))


def _count(element: ET.Element) -> None:
    """The counts that a suite, or all suites, must state."""
    tests, failures, skipped = (len(list(element.iter(tag))) for tag in ("testcase", "failure", "skipped"))
    element.attrib |= {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": str(skipped)}


def _text(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return _ILLEGAL_IN_XML.sub("\ufffd", text)
