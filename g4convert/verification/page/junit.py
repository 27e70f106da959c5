"""Output of a report as JUnit XML: one suite for each level, one testcase for each code and subject."""

import re
from collections.abc import Iterable, Iterator
from typing import Final
from xml.etree import ElementTree as ET

from g4convert.printable import printable_lines
from g4convert.report import Finding, Report, Severity

_ILLEGAL: Final = re.compile("[\ufffe\uffff]")
"""Characters that XML 1.0 cannot hold, besides those that are written as escapes."""


def junit(report: Report, *, strict: bool = False) -> str:
    """Return JUnit XML: FAIL is a failure, INCONCLUSIVE and levels that did not run are skipped, the rest passes.

    Args:
        report: report to write.
        strict: whether a warning is a failure, too.
    """
    root = ET.Element("testsuites", name="g4convert verify")
    for level in dict.fromkeys(finding.level for finding in report.findings):
        cases = list(_group_cases(finding for finding in report.findings if finding.level == level))
        suite = ET.SubElement(root, "testsuite", name=f"g4convert.{level}")
        for case in cases:
            _add_case(suite, case, strict=strict)
        _add_counts(suite)
    _add_counts(root)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _group_cases(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Yield the findings of each testcase: findings with the same code and subject."""
    cases: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        cases.setdefault((finding.code, finding.subject), []).append(finding)
    yield from cases.values()


def _add_case(suite: ET.Element, findings: list[Finding], *, strict: bool) -> None:
    first = findings[0]
    case = ET.SubElement(suite, "testcase", classname=_text(first.code), name=_text(first.subject))
    bad = {Severity.FAIL, Severity.WARN} if strict else {Severity.FAIL}
    failures = [finding for finding in findings if finding.severity in bad]
    unclear = [finding for finding in findings if finding.severity is Severity.INCONCLUSIVE or finding.is_stopped]
    if failures:
        element = ET.SubElement(case, "failure", type=_text(first.code), message=_text(failures[0].line))
        element.text = _lines(failures)
    elif unclear:
        ET.SubElement(case, "skipped", message=_text("; ".join(finding.line for finding in unclear)))
    rest = [finding for finding in findings if finding not in failures and finding not in unclear]
    if rest:
        ET.SubElement(case, "system-out").text = _lines(rest)


def _lines(findings: Iterable[Finding]) -> str:
    remedied = ((finding, f" ({finding.remedy})" if finding.remedy else "") for finding in findings)
    return _text("\n".join(f"{finding.severity.value}: {finding.line}{remedy}" for finding, remedy in remedied))


def _add_counts(element: ET.Element) -> None:
    """Add the counts that JUnit requires of a suite and of all suites."""
    tests, failures, skipped = (len(list(element.iter(tag))) for tag in ("testcase", "failure", "skipped"))
    element.attrib |= {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": str(skipped)}


def _text(text: str) -> str:
    """Return text with control characters as escapes, and without the other characters that XML 1.0 cannot hold."""
    return _ILLEGAL.sub("\ufffd", printable_lines(text))
