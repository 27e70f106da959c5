"""Judgement of measured metrics by the thresholds of a profile and the noise floor of the same tokens.

    value    up to `pass`   between       beyond `fail`
             PASS           WARN          FAIL

The floor can widen the limits of a threshold: with `times_floor` f a limit is at least f times the floor, with
`below_floor` d an agreement may be d below the floor's. If the floor itself is high (its mean KL above `max_floor`),
no metric can PASS: it is INCONCLUSIVE, or FAIL if it fails even with the floor subtracted.

The mean KL is judged by the upper end of its interval, if that was measured. A metric is nan if there was nothing to
measure it on. A profile of which no metric was measured is INCONCLUSIVE, also if all of them are optional. NaNs among
the candidate's logits are counted apart and fail.

Pure: numbers by name in, findings out.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from g4convert.report import Finding, Severity
from g4convert.verification.profiles import Profile, Threshold

WIDER: Final = 1.43
"""Upper end of the mean KL's interval over the mean, measured on Gemma 3 270M with the bundled prompts: 0.38 for 0.266
in 4 bits, 3.4e-4 for 2.37e-4 in 8."""
_LOWER: Final = "--dtype float32 rounds less"
_LOWEST: Final = (
    "no dtype rounds less than float32: compare the weights (--level weights), or judge by a higher max_floor"
)
"""Remedies of a high floor, in bfloat16 and in float32."""
_KL: Final = "kl_mean"
_UPPER_END: Final = "kl_high"


def judge(  # noqa: PLR0913 -- what was measured, what judges it, and three words for findings
    metrics: Mapping[str, float],
    profile: Profile,
    floor: Mapping[str, float] | None,
    *,
    level: str = "logits",
    subject: str = "all predictions",
    dtype: str = "float32",
) -> Iterator[Finding]:
    """Yield findings on every metric that a profile has a threshold for.

    Args:
        metrics: measured metrics, by the names of `g4convert.verification.logits.metrics.Metrics.values`.
        profile: the thresholds.
        floor: noise floor of the same metrics, on the same tokens; None if it was not measured.
        level: first part of the findings' codes; `loss` or `parity` and the metric follow.
        subject: description of the tokens that were scored.
        dtype: dtype of the forwards, whose rounding is the floor.
    """
    code = f"{level}.{profile.compares}"
    yield _finite_finding(metrics, code, subject)
    state = _floor_finding(profile, floor, code, subject, dtype)
    yield state
    nothing = all(math.isnan(_judged_value(metrics, name)) for name in profile.thresholds)
    for name, threshold in profile.thresholds.items():
        value, noise = _judged_value(metrics, name), _judged_value(floor or {}, name)
        if math.isnan(value):
            severity = Severity.INFO if threshold.optional and not nothing else Severity.INCONCLUSIVE
            found = "not measured"
        else:
            severity = _rate(value, threshold, noise)
            if state.severity is Severity.INCONCLUSIVE and not _fails_anyway(value, threshold, noise):
                severity = Severity.INCONCLUSIVE
            words = _describe_metric(metrics, name, value)
            found = words if math.isnan(noise) else f"{words}, noise floor {_format_number((floor or {})[name])}"
        yield Finding(f"{code}.{name}", severity, subject, found, _describe_limits(threshold, noise))


def _judged_value(metrics: Mapping[str, float], name: str) -> float:
    """Return a metric, nan if not measured; for the mean KL, the upper end of its interval if that is known."""
    names = (_UPPER_END, _KL) if name == _KL else (name,)
    values = (metrics.get(one, math.nan) for one in names)
    return next((value for value in values if not math.isnan(value)), math.nan)


def _describe_metric(metrics: Mapping[str, float], name: str, judged: float) -> str:
    """Describe a metric; with the judged value too, if that is the upper end of an interval."""
    value = metrics[name]
    return (
        _format_number(value)
        if value == judged
        else f"{_format_number(value)}, judged by the 95 % limit {_format_number(judged)}"
    )


def _finite_finding(metrics: Mapping[str, float], code: str, subject: str) -> Finding:
    """Return the finding on NaNs and infinities among the logits."""
    expected = "no NaN and no infinity among the logits"
    if metrics.get("nonfinite", 0):
        found = f"{metrics['nonfinite']:g} tokens of the candidate with one"
        return Finding(f"{code}.finite", Severity.FAIL, subject, found, expected)
    if metrics.get("reference_nonfinite", 0):
        found = f"{metrics['reference_nonfinite']:g} tokens of the reference with one"
        remedy = "run the reference in float32 or bfloat16: float16 overflows"
        return Finding(f"{code}.finite", Severity.INCONCLUSIVE, subject, found, expected, remedy)
    return Finding(f"{code}.finite", Severity.PASS, subject, "all logits are numbers", expected)


def _floor_finding(profile: Profile, floor: Mapping[str, float] | None, code: str, subject: str, dtype: str) -> Finding:
    """Return the finding on whether the noise floor is low enough for a verdict."""
    expected = f"mean KL at most {_format_number(profile.max_floor)}"
    level = math.nan if floor is None else floor.get(_KL, math.nan)
    if math.isnan(level):
        needed = any(threshold.needs_floor for threshold in profile.thresholds.values())
        severity = Severity.INCONCLUSIVE if needed else Severity.INFO
        return Finding(f"{code}.floor", severity, subject, "no noise floor measured", expected)
    severity = Severity.INCONCLUSIVE if level > profile.max_floor else Severity.PASS
    remedy = "" if severity is Severity.PASS else _LOWER if dtype != "float32" else _LOWEST
    found = f"rounding alone moves the logits by a mean KL of {_format_number(level)}"
    return Finding(f"{code}.floor", severity, subject, found, expected, remedy)


def _compute_badness(value: float, threshold: Threshold) -> float:
    """Return a metric transformed so that a larger value is worse."""
    if threshold.direction == "one":
        return abs(value - 1)
    return -value if threshold.direction == "higher" else value


def _widen_bounds(threshold: Threshold, noise: float) -> tuple[float, float]:
    """Return the badness up to which a metric passes and above which it fails, widened by the floor."""
    sign = -1 if threshold.direction == "higher" else 1
    bounds = sign * threshold.passes, sign * threshold.fail
    if math.isnan(noise) or not threshold.needs_floor:
        return bounds
    least = _compute_badness(noise, threshold) * (threshold.times_floor or 1) + (threshold.below_floor or 0)
    return max(bounds[0], least), max(bounds[1], least)


def _rate(value: float, threshold: Threshold, noise: float) -> Severity:
    passes, fails = _widen_bounds(threshold, noise)
    badness = _compute_badness(value, threshold)
    if badness <= passes:
        return Severity.PASS
    return Severity.FAIL if badness > fails else Severity.WARN


def expected_severity(high: float, profile: Profile) -> Severity:
    """Return what a profile is expected to say of a model, by an estimated upper end of the mean KL's interval."""
    threshold = profile.thresholds.get(_KL)
    return Severity.FAIL if threshold is None else _rate(high, threshold, math.nan)


def _fails_anyway(value: float, threshold: Threshold, noise: float) -> bool:
    """Return whether a metric fails even with the whole floor subtracted from its badness."""
    perfect = -1.0 if threshold.direction == "higher" else 0.0
    excess = _compute_badness(value, threshold) - (_compute_badness(noise, threshold) - perfect)
    return excess > _widen_bounds(threshold, noise)[1]  # false for a nan: without a floor nothing is certain


def _describe_limits(threshold: Threshold, noise: float) -> str:
    """Describe the limits: `up to 0.05, fails above 0.1`."""
    words = {"lower": ("up to", "above"), "higher": ("from", "below"), "one": ("off 1 by up to", "above")}
    least, beyond = words[threshold.direction]
    passes, fails = (abs(bound) for bound in _widen_bounds(threshold, noise))
    within = f"{least} {_format_number(passes)}"
    return within if passes == fails else f"{within}, fails {beyond} {_format_number(fails)}"


def _format_number(value: float) -> str:
    return f"{value:.4g}"
