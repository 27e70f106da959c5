"""Advice where four bits cost too much: once, at the worst, and only if nothing else is wrong."""

from g4convert.report import Finding, Severity
from g4convert.verification.logits.advice import with_advice
from g4convert.verification.logits.blame import Blame, Blamed

FAIL, WARN, PASS = Severity.FAIL, Severity.WARN, Severity.PASS


def finding(code: str, severity: Severity) -> Finding:
    return Finding(f"logits.{code}", severity, "all predictions", "", "")


def remedies(*findings: Finding, blamed: Blame | None = None, method: str | None = None) -> dict[str, str]:
    advised = with_advice(findings, blamed.to_dict()["rows"] if blamed else (), method)
    return {one.code: one.remedy for one in advised if one.remedy}


RIGHT = finding("parity.kl_mean", PASS)


def test_the_worst_findings_of_a_loss_name_what_costs_less() -> None:
    found = remedies(finding("loss.kl_mean", FAIL), finding("loss.kl_p999", WARN), RIGHT)
    assert list(found) == ["logits.loss.kl_mean"]
    for way in ("the file is right", "w4a16-g32-gptq", "w4a16-g32-best", "g4convert fit", "w8a16-g32"):
        assert way in found["logits.loss.kl_mean"]
    assert list(remedies(finding("loss.kl_p999", WARN), RIGHT)) == ["logits.loss.kl_p999"]


def test_a_table_of_blame_adds_a_line_of_a_recipe_and_the_layers() -> None:
    rows = (
        Blamed("mlp", 0.5, 0.1, float("nan"), kind="role"),
        Blamed("attention", -0.1, 0.2, float("nan"), kind="role"),
        Blamed("layers.3", 0.2, 0.16, 20.0, kind="layer"),
    )
    blamed = Blame(0.2, 0.2, rows, 30)
    (text,) = remedies(finding("loss.kl_mean", FAIL), RIGHT, blamed=blamed).values()
    lines = text.splitlines()
    assert "every mlp weight in bf16: `pack: [attention]` in a recipe takes 50 % of the cost away" in lines
    assert lines[-1].endswith("by `rules` of a recipe: layers.3 (20 %)")


def test_a_method_that_costs_no_less_is_not_advised() -> None:
    lost = finding("loss.kl_mean", FAIL), RIGHT
    for method, offered in ((None, True), ("auto", True), ("imatrix", True), ("gptq", False), ("best", False)):
        (text,) = remedies(*lost, method=method).values()
        assert ("w4a16-g32-gptq" in text) is offered
        assert "w8a16-g32" in text


def test_nothing_is_advised_beside_a_fault_or_without_a_path() -> None:
    lost = finding("loss.kl_mean", FAIL)
    assert remedies(lost, finding("parity.kl_mean", FAIL)) == {}
    assert remedies(lost, RIGHT, finding("decode", FAIL)) == {}
    assert remedies(lost) == {}
