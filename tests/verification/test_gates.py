"""Gates: where a metric passes, warns and fails, and what the noise floor does to it."""

import math
from pathlib import Path

import pytest
from helpers import ROOT

from g4convert.errors import UsageError
from g4convert.planning import recipe_files
from g4convert.report import Finding, Report, Severity
from g4convert.verification.gates import expected_severity, judge
from g4convert.verification.profiles import Profile, load, shipped

PASS, WARN, FAIL, INFO, UNCLEAR = Severity.PASS, Severity.WARN, Severity.FAIL, Severity.INFO, Severity.INCONCLUSIVE
GOOD = {
    "kl_mean": 0.02,
    "kl_high": 0.03,
    "kl_median": 0.01,
    "kl_p99": 0.2,
    "kl_p999": 0.9,
    "top1_agreement": 0.95,
    "top1_confident": 0.998,
    "rms_dp": 0.03,
    "ppl_ratio": 1.01,
    "router_jaccard_min": 0.9,
    "nonfinite": 0,
}
EXACT = {**dict.fromkeys(GOOD, 0.0), "top1_agreement": 1.0, "top1_confident": 1.0, "ppl_ratio": 1.0}
EXACT["router_jaccard_min"] = 1.0
LOW_FLOOR = {**EXACT, "kl_mean": 1e-4, "kl_high": 1e-4, "top1_agreement": 0.99}


def judged(metrics: dict[str, float], profile: str, floor: dict[str, float] | None) -> dict[str, Finding]:
    return {one.code.rpartition(".")[2]: one for one in judge(metrics, load(profile), floor)}


def verdict(found: dict[str, Finding]) -> Severity:
    return Report(tuple(found.values()), ("logits",)).verdict


def test_shipped_profiles_load_start_with_a_command_and_are_no_recipes() -> None:
    assert set(shipped()) == {"w4a16", "qat", "parity"}
    assert not set(shipped()) & set(recipe_files.load_shipped())
    for name in shipped():
        text = (ROOT / "recipes" / "profiles" / f"{name}.yaml").read_text()
        first = text.splitlines()[0]
        assert first.startswith("# g4convert verify OUT --reference MODEL --")
        assert first.endswith(f" {name}")


def test_a_qat_profile_is_stricter_than_that_of_plain_rounding() -> None:
    qat, plain = load("qat"), load("w4a16")
    assert qat.thresholds.keys() == plain.thresholds.keys()
    for name, strict in qat.thresholds.items():
        sign = -1 if strict.direction == "higher" else 1
        assert sign * strict.passes < sign * plain.thresholds[name].passes
        assert sign * strict.fail < sign * plain.thresholds[name].fail


def test_a_good_checkpoint_passes_everywhere_and_says_where_the_limits_are() -> None:
    found = judged(GOOD, "w4a16", LOW_FLOOR)
    assert {one.severity for one in found.values()} == {PASS}
    assert found["kl_p99"].code == "logits.loss.kl_p99"
    assert found["kl_p99"].found == "0.2, noise floor 0"
    assert found["kl_p99"].expected == "up to 0.5, fails above 1"
    assert found["top1_agreement"].expected == "from 0.93, fails below 0.9"


def test_the_floor_of_the_mean_is_told_as_it_was_measured_and_judges_by_its_upper_end() -> None:
    found = judged(GOOD, "w4a16", {**LOW_FLOOR, "kl_mean": 1e-9, "kl_high": 2e-9})
    assert found["kl_mean"].found.endswith("noise floor 1e-09")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kl_high", (0.05, 0.051, 0.101)),
        ("kl_median", (0.02, 0.03, 0.06)),
        ("kl_p99", (0.5, 0.8, 1.1)),
        ("kl_p999", (2.0, 3.0, math.inf)),
        ("top1_agreement", (0.93, 0.92, 0.89)),
        ("top1_confident", (0.995, 0.991, 0.98)),
        ("rms_dp", (0.05, 0.06, 0.09)),
        ("ppl_ratio", (1.03, 1.05, 1.07)),
        ("router_jaccard_min", (0.85, 0.75, 0.6)),
    ],
)
def test_pass_warn_and_fail(name: str, values: tuple[float, float, float]) -> None:
    metric = "kl_mean" if name == "kl_high" else name
    severities = [judged({**GOOD, name: value}, "w4a16", LOW_FLOOR)[metric].severity for value in values]
    assert severities == [PASS, WARN, FAIL]


def test_the_mean_is_judged_by_the_upper_end_of_its_interval() -> None:
    assert judged({**GOOD, "kl_high": 0.2}, "w4a16", LOW_FLOOR)["kl_mean"].severity is FAIL
    without = {name: value for name, value in GOOD.items() if name != "kl_high"}
    assert judged(without, "w4a16", LOW_FLOOR)["kl_mean"].found.startswith("0.02,")


def test_exact_outputs_are_in_parity() -> None:
    assert verdict(judged(EXACT, "parity", LOW_FLOOR)) is PASS
    assert verdict(judged(EXACT, "parity", EXACT)) is PASS


def test_parity_is_judged_in_multiples_of_the_floor() -> None:
    floor = {**EXACT, "kl_mean": 0.002, "kl_high": 0.002, "top1_agreement": 0.97, "ppl_ratio": 0.998}
    near = {**EXACT, "kl_mean": 0.0055, "kl_high": 0.0059, "top1_agreement": 0.961, "ppl_ratio": 1.0059}
    assert verdict(judged(near, "parity", floor)) is PASS
    assert judged({**near, "kl_high": 0.0061}, "parity", floor)["kl_mean"].severity is FAIL
    assert judged({**near, "top1_agreement": 0.959}, "parity", floor)["top1_agreement"].severity is FAIL
    assert judged({**near, "ppl_ratio": 0.99}, "parity", floor)["ppl_ratio"].severity is FAIL
    assert judged(near, "parity", EXACT)["kl_mean"].severity is FAIL


@pytest.mark.parametrize("profile", ["w4a16", "qat", "parity"])
def test_a_high_floor_never_passes(profile: str) -> None:
    floor = {**EXACT, "kl_mean": 0.021, "kl_high": 0.03}
    found = judged(EXACT, profile, floor)
    assert verdict(found) is UNCLEAR
    assert {found[name].severity for name in load(profile).thresholds} == {UNCLEAR}


def test_a_high_floor_names_what_can_be_done() -> None:
    high = {**EXACT, "kl_mean": 0.021, "kl_high": 0.03}
    for dtype, remedy in (
        ("bfloat16", "--dtype float32 rounds less"),
        ("float32", "no dtype rounds less than float32"),
    ):
        found = {one.code: one for one in judge(GOOD, load("w4a16"), high, dtype=dtype)}
        assert found["logits.loss.floor"].remedy.startswith(remedy)
        low = {one.code: one for one in judge(GOOD, load("w4a16"), LOW_FLOOR, dtype=dtype)}
        assert low["logits.loss.floor"].remedy == ""


def test_the_shipped_profile_that_a_hint_names_is_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, "[]"))
    named = caught.value.hint.removeprefix("compare with a shipped one: ")
    assert load(named) == load("w4a16")


def test_what_fails_beyond_a_high_floor_fails() -> None:
    floor = {**GOOD, "kl_mean": 0.021, "kl_high": 0.03, "top1_agreement": 0.96}
    found = judged({**GOOD, "kl_high": 0.12, "top1_agreement": 0.80}, "w4a16", floor)
    assert found["kl_mean"].severity is UNCLEAR  # 0.12 - 0.03 is below 0.1
    assert found["top1_agreement"].severity is FAIL
    assert verdict(found) is FAIL


def test_without_a_floor_parity_cannot_be_told_and_loss_can() -> None:
    assert verdict(judged(EXACT, "parity", None)) is UNCLEAR
    found = judged(GOOD, "w4a16", None)
    assert verdict(found) is PASS
    assert found["floor"].severity is INFO
    assert found["kl_mean"].found == "0.02, judged by the 95 % limit 0.03"


def test_what_was_not_measured_is_no_pass() -> None:
    dense = {**GOOD, "router_jaccard_min": math.nan, "top1_confident": math.nan}
    found = judged(dense, "w4a16", LOW_FLOOR)
    assert found["router_jaccard_min"].severity is INFO
    assert verdict(found) is PASS
    assert verdict(judged({**GOOD, "rms_dp": math.nan}, "w4a16", LOW_FLOOR)) is UNCLEAR
    assert verdict(judged({}, "w4a16", LOW_FLOOR)) is UNCLEAR


def test_logits_that_are_no_numbers() -> None:
    assert judged({**GOOD, "nonfinite": 3}, "w4a16", LOW_FLOOR)["finite"].severity is FAIL
    assert judged({**GOOD, "reference_nonfinite": 1}, "w4a16", LOW_FLOOR)["finite"].severity is UNCLEAR


HEAD = "description: mine\ncompares: loss\nmetrics_version: 1\nmax_floor: 0.02\n"
PARITY = HEAD.replace("loss", "parity")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    text = f"{HEAD}thresholds: {{kl_p99: {{direction: lower, pass: 1, fail: 2}}}}\n"
    profile = load(write(tmp_path, text))
    assert isinstance(profile, Profile)
    codes = [one.code for one in judge(GOOD, profile, None, level="engine", subject="code")]
    assert codes == ["engine.loss.finite", "engine.loss.floor", "engine.loss.kl_p99"]


@pytest.mark.parametrize(
    ("text", "offender"),
    [
        (f"{HEAD}thresholds: {{kl: {{direction: lower, pass: 1, fail: 2}}}}", "thresholds.kl"),
        (f"{HEAD}thresholds: {{kl_p99: {{direction: lower, pass: 3, fail: 2}}}}", "good side of pass"),
        (f"{HEAD}thresholds: {{ppl_ratio: {{direction: one, pass: .nan, fail: 2}}}}", "pass"),
        (f"{HEAD}thresholds: {{kl_p99: {{direction: lower, pass: 1, fail: 2, below_floor: 0.1}}}}", "times_floor"),
        (f"{HEAD}thresholds: {{rms_dp: {{direction: lower, pass: 1, fail: 2, warn: 1}}}}", "rms_dp.warn"),
        (f"{HEAD}thresholds: {{}}", "thresholds"),
        (HEAD.replace("1", "2") + "thresholds: {kl_p99: {direction: lower, pass: 1, fail: 2}}", "metrics_version"),
        ("[]", "mine.yaml"),
        (f"{HEAD}thresholds: {{kl_mean: {{direction: higher, pass: 0.1, fail: 0.05}}}}", "kl_mean: direction higher"),
        (f"{HEAD}thresholds: {{kl_p99: {{direction: one, pass: 0.1, fail: 0.2}}}}", "kl_p99: direction one"),
        (f"{HEAD}thresholds: {{rms_dp: {{direction: higher, pass: 1, fail: 0}}}}", "rms_dp: direction higher"),
        (f"{HEAD}thresholds: {{top1_agreement: {{direction: lower, pass: 1, fail: 1}}}}", "is better higher"),
        (f"{HEAD}thresholds: {{ppl_ratio: {{direction: higher, pass: 1, fail: 1}}}}", "is better lower or one"),
        (f"{PARITY}thresholds: {{ppl_ratio: {{direction: lower, pass: 1, fail: 1}}}}", "is better one"),
        (f"{HEAD}thresholds: {{ppl_ratio: {{direction: one, pass: 0.5, fail: 1.03}}}}", "distance"),
        (f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: true, fail: 2}}}}", "kl_mean.pass"),
        (f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: 0, fail: true}}}}", "kl_mean.fail"),
        (f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: 0, fail: 1, times_floor: yes}}}}", "times_floor"),
        (
            f"{HEAD}thresholds: {{top1_agreement: {{direction: higher, pass: 0, fail: 0, below_floor: no}}}}",
            "below_floor",
        ),
        (f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: 0, fail: 1, optional: 1}}}}", "kl_mean.optional"),
        (HEAD.replace("0.02", "true") + "thresholds: {kl_p99: {direction: lower, pass: 1, fail: 2}}", "max_floor"),
        (HEAD.replace("1", "true") + "thresholds: {kl_p99: {direction: lower, pass: 1, fail: 2}}", "metrics_version"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, text: str, offender: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, text))
    assert any(offender in line for line in caught.value.offenders), caught.value


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    profile = load(write(tmp_path, f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: 1e-3, fail: 1}}}}"))
    assert (profile.thresholds["kl_mean"].passes, profile.thresholds["kl_mean"].fail) == (0.001, 1)


def test_a_profile_of_which_nothing_was_measured_tells_nothing(tmp_path: Path) -> None:
    experts = "router_jaccard_min: {direction: higher, pass: 0.85, fail: 0.70, optional: true}"
    dense = {**GOOD, "router_jaccard_min": math.nan}
    alone = load(write(tmp_path, f"{HEAD}thresholds: {{{experts}}}"))
    assert [one.severity for one in judge(dense, alone, LOW_FLOOR)] == [PASS, PASS, UNCLEAR]
    both = load(write(tmp_path, f"{HEAD}thresholds: {{kl_mean: {{direction: lower, pass: 1, fail: 2}}, {experts}}}"))
    assert [one.severity for one in judge(dense, both, LOW_FLOOR)] == [PASS, PASS, PASS, INFO]


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not one of the shipped") as caught:
        load("w4a61")
    assert caught.value.hint == "did you mean w4a16?"
    with pytest.raises(UsageError, match="cannot be read"):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="not YAML"):
        load(write(tmp_path, "{"))


@pytest.mark.parametrize(("high", "said"), [(0.05, PASS), (0.051, WARN), (0.1, WARN), (0.101, FAIL)])
def test_an_estimate_is_judged_as_what_is_measured(high: float, said: Severity) -> None:
    assert expected_severity(high, load("w4a16")) is said
    assert judged(GOOD | {"kl_high": high}, "w4a16", LOW_FLOOR)["kl_mean"].severity is said
