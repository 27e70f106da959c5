"""A report as JUnit XML."""

from xml.etree import ElementTree as ET

from g4convert.report import Finding, Report, Severity
from g4convert.verification.page.junit import junit

PASS, WARN, FAIL, UNCLEAR = Severity.PASS, Severity.WARN, Severity.FAIL, Severity.INCONCLUSIVE


def finding(severity: Severity, code: str = "static.scale", subject: str = "layers.0.mlp.up_proj") -> Finding:
    return Finding(code, severity, subject, "no weight_scale", "BF16 [8, 1]", "quantize again")


def test_junit_has_a_suite_for_each_level_and_a_case_for_each_code_and_subject() -> None:
    findings = (
        finding(PASS),
        finding(FAIL, subject="layers.1.mlp.up_proj"),
        finding(FAIL, subject="layers.1.mlp.up_proj"),
        finding(UNCLEAR, code="logits.loss.floor"),
        finding(WARN, code="static.dead_entry"),
    )
    text = junit(Report(findings, ("static", "logits")))
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
    strict = ET.fromstring(junit(Report(findings, ()), strict=True))  # noqa: S314 - the same
    assert strict.get("failures") == "2"


def test_a_level_that_did_not_run_is_skipped() -> None:
    root = ET.fromstring(junit(Report((finding(Severity.INFO, code="weights.stopped"),), ("static",))))  # noqa: S314 - ours
    assert (root.get("tests"), root.get("skipped")) == ("1", "1")


def test_junit_is_xml_whatever_a_tensor_is_called() -> None:
    nasty = 'a<b>&"\x00\x1b[31m\ud800\uffff]]>é'
    findings = (Finding("static.unknown", FAIL, nasty, nasty, nasty, nasty),)
    text = junit(Report(findings, ("static",)))
    case = ET.fromstring(text.encode()).find(".//testcase")  # noqa: S314 - our own text
    assert case is not None
    assert case.get("name") == r'a<b>&"\x00\x1b[31m\ud800' + "\ufffd]]>é"
