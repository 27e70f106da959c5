"""The report: verdict, exit code, JSON and JUnit."""

import json
import math
from xml.etree import ElementTree as ET

import pytest

from g4convert.report import Finding, Report, Severity, grouped

PASS, WARN, FAIL, INFO, UNCLEAR = Severity.PASS, Severity.WARN, Severity.FAIL, Severity.INFO, Severity.INCONCLUSIVE


def finding(severity: Severity, code: str = "static.scale", subject: str = "layers.0.mlp.up_proj") -> Finding:
    return Finding(code, severity, subject, "no weight_scale", "BF16 [8, 1]", "quantize again")


def report(*severities: Severity, **values: object) -> Report:
    return Report(tuple(finding(severity) for severity in severities), ("static",), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("severities", "verdict", "code", "strict"),
    [
        ((PASS, INFO), PASS, 0, 0),
        ((PASS, WARN), WARN, 0, 1),
        ((PASS, WARN, UNCLEAR), UNCLEAR, 4, 1),
        ((PASS, UNCLEAR), UNCLEAR, 4, 4),
        ((UNCLEAR, FAIL, PASS), FAIL, 1, 1),
        ((), UNCLEAR, 4, 4),
        ((INFO,), UNCLEAR, 4, 4),
    ],
)
def test_verdict_and_exit_code(severities: tuple[Severity, ...], verdict: Severity, code: int, strict: int) -> None:
    found = report(*severities)
    assert found.verdict is verdict
    assert (found.exit_code(strict=False), found.exit_code(strict=True)) == (code, strict)


def test_json_has_a_version_and_only_what_json_has() -> None:
    metrics = {"kl_max": math.inf, "nested": [{"sqnr": -math.inf, "ppl": math.nan}], "tokens": 3, "exact": True}
    text = report(PASS, FAIL, metrics=metrics, output="out", reference="model").to_json()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["schema_version"] == 1
    assert found["verdict"] == "fail"
    assert found["counts"] == {"pass": 1, "info": 0, "warn": 0, "inconclusive": 0, "fail": 1}
    assert found["metrics"] == {
        "kl_max": "inf",
        "nested": [{"sqnr": "-inf", "ppl": "nan"}],
        "tokens": 3,
        "exact": True,
    }
    assert found["findings"][1] == {
        "code": "static.scale",
        "severity": "fail",
        "subject": "layers.0.mlp.up_proj",
        "found": "no weight_scale",
        "expected": "BF16 [8, 1]",
        "remedy": "quantize again",
    }
    assert (found["output"], found["reference"], found["levels"]) == ("out", "model", ["static"])


def test_junit_has_a_suite_for_each_level_and_a_case_for_each_code_and_subject() -> None:
    findings = (
        finding(PASS),
        finding(FAIL, subject="layers.1.mlp.up_proj"),
        finding(FAIL, subject="layers.1.mlp.up_proj"),
        finding(UNCLEAR, code="logits.loss.floor"),
        finding(WARN, code="static.dead_entry"),
    )
    text = Report(findings, ("static", "logits")).junit()
    root = ET.fromstring(text)  # noqa: S314 - our own text
    assert root.tag == "testsuites"
    assert {suite.get("name"): suite.get("tests") for suite in root} == {
        "g4convert.static": "3",
        "g4convert.logits": "1",
    }
    assert root.attrib == {"name": "g4convert verify", "tests": "4", "failures": "1", "errors": "0", "skipped": "1"}
    failed = root.find(".//testcase/failure")
    assert failed is not None
    assert failed.get("message") == "layers.1.mlp.up_proj: no weight_scale, expected BF16 [8, 1]"
    assert failed.text == "\n".join(
        ["fail: layers.1.mlp.up_proj: no weight_scale, expected BF16 [8, 1] (quantize again)"] * 2
    )
    skipped = root.find(".//testcase/skipped")
    assert skipped is not None
    assert "no weight_scale" in skipped.get("message", "")
    strict = ET.fromstring(Report(findings, ()).junit(strict=True))  # noqa: S314 - the same
    assert strict.get("failures") == "2"


def test_junit_is_xml_whatever_a_tensor_is_called() -> None:
    nasty = 'a<b>&"\x00\x1b[31m\ud800\uffff]]>é'
    findings = (Finding("static.unknown", FAIL, nasty, nasty, nasty, nasty),)
    text = Report(findings, ("static",)).junit()
    case = ET.fromstring(text.encode()).find(".//testcase")  # noqa: S314 - our own text
    assert case is not None
    assert case.get("name") == 'a<b>&"\ufffd\ufffd[31m\ufffd\ufffd]]>é'


def test_the_same_of_many_modules_is_said_once() -> None:
    names = [f"layers.{n}.experts.{e}.up_proj" for n in (3,) for e in range(4)]
    other = finding(FAIL, subject="layers.3.router.proj")
    found = list(grouped([*(finding(FAIL, subject=name) for name in names), other, finding(WARN, subject=names[0])]))
    assert [one.subject for one in found] == ["layers.3.experts.*.up_proj", other.subject, names[0]]
    assert found[0].told == "no weight_scale (4 of them, first layers.3.experts.0.up_proj)"
    assert found[1] == other
