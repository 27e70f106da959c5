"""The report: verdict, exit code, JSON."""

import json
import math

import pytest

from g4convert.report import Finding, Report, Severity, join_alike

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


def test_the_same_of_many_modules_is_said_once() -> None:
    names = [f"layers.{n}.experts.{e}.up_proj" for n in (3,) for e in range(4)]
    other = finding(FAIL, subject="layers.3.router.proj")
    found = list(join_alike([*(finding(FAIL, subject=name) for name in names), other, finding(WARN, subject=names[0])]))
    assert [one.subject for one in found] == ["layers.3.experts.*.up_proj", other.subject, names[0]]
    assert found[0].told == "no weight_scale (4 of them, first layers.3.experts.0.up_proj)"
    assert found[1] == other
