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
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from g4convert.bounded import MOST_YAML, read_text
from g4convert.errors import UsageError
from g4convert.plain_yaml import parse
from g4convert.report import Finding, Severity
from g4convert.suggestions import nearest

_PACKAGE: Final = Path(__file__).parents[1]
_SHIPPED: Final = {
    path.stem: path
    for directory in (_PACKAGE / "recipes" / "profiles", _PACKAGE.parent / "recipes" / "profiles")
    for path in sorted(directory.glob("*.yaml"))
}

WIDER: Final = 1.43
"""Upper end of the mean KL's interval over the mean, measured on Gemma 3 270M with the bundled prompts: 0.38 for 0.266
in 4 bits, 3.4e-4 for 2.37e-4 in 8."""
METRICS_VERSION: Final = 1
"""Version of the metrics, raised when a metric changes its meaning; profiles and captures of another are refused."""

MetricName = Literal[
    "kl_mean",
    "kl_median",
    "kl_p99",
    "kl_p999",
    "top1_agreement",
    "top1_confident",
    "rms_dp",
    "ppl_ratio",
    "router_jaccard_min",
]
Direction = Literal["lower", "higher", "one"]


def _no_flag(value: object) -> object:
    """Refuse true and false, which Python counts as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")  # noqa: TRY004 -- pydantic reports a ValueError
    return value


_Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_flag)]
_Limit = Annotated[_Number, Field(ge=0)]
_LOWER: Final = "--dtype float32 rounds less"
_LOWEST: Final = (
    "no dtype rounds less than float32: compare the weights (--level weights), or judge by a higher max_floor"
)
"""Remedies of a high floor, in bfloat16 and in float32."""
_KL: Final = "kl_mean"
_UPPER_END: Final = "kl_high"


def _better(name: MetricName, compares: Literal["loss", "parity"]) -> tuple[Direction, ...]:
    """Return the directions that a profile may give a metric."""
    if name == "ppl_ratio":  # a quantized model may be less perplexed; the same weights may not
        return ("lower", "one") if compares == "loss" else ("one",)
    return ("higher",) if name in {"top1_agreement", "top1_confident", "router_jaccard_min"} else ("lower",)


class Threshold(BaseModel):
    """Limits at which one metric passes and fails."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    direction: Direction = Field(
        description="What is better: lower, higher, or nearer to one (limits are then distances from it)."
    )
    passes: _Limit = Field(alias="pass", description="Passes up to here.")
    fail: _Limit = Field(description="Fails beyond; what lies between warns.")
    times_floor: _Number | None = Field(None, ge=1, description="Limits are at least this many times the floor.")
    below_floor: _Number | None = Field(None, ge=0, lt=1, description="Limits are at most this much below the floor.")
    optional: StrictBool = Field(default=False, description="Not every model or probe set has it.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (self.fail < self.passes) if self.direction != "higher" else (self.fail > self.passes):
            raise ValueError(f"fail {self.fail} lies on the good side of pass {self.passes}")
        if self.direction == "one" and self.fail >= 1:
            raise ValueError(f"fail {self.fail} is a distance from one, so it must be below 1")
        if self.direction == "higher" and self.times_floor is not None:
            raise ValueError("times_floor is for what is better lower: take below_floor")
        if self.direction != "higher" and self.below_floor is not None:
            raise ValueError("below_floor is for what is better higher: take times_floor")
        return self

    @property
    def needs_floor(self) -> bool:
        """True if the limits depend on the floor."""
        return self.times_floor is not None or self.below_floor is not None


class Profile(BaseModel):
    """Thresholds for one kind of comparison. Values only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = Field(min_length=1, description="One line for lists.")
    compares: Literal["loss", "parity"] = Field(
        description="loss: the original with the dequantized weights; parity: those with the path that runs."
    )
    metrics_version: StrictInt = Field(
        ge=METRICS_VERSION, le=METRICS_VERSION, description="Version of the metrics that the thresholds were set for."
    )
    max_floor: _Limit = Field(description="Mean KL of the noise floor above which nothing can be told.")
    thresholds: dict[MetricName, Threshold] = Field(min_length=1)

    @model_validator(mode="after")
    def _right_way_round(self) -> Self:
        for name, threshold in self.thresholds.items():
            better = _better(name, self.compares)
            if threshold.direction not in better:
                raise ValueError(f"{name}: direction {threshold.direction}, but it is better {' or '.join(better)}")
        return self


def shipped() -> dict[str, Profile]:
    """Load the profiles that come with the package, by name."""
    return {name: load(name) for name in _SHIPPED}


def load(name: str) -> Profile:
    """Read a profile.

    Args:
        name: name of a shipped profile, or a path (anything with a slash or ending in .yaml/.yml).

    Raises:
        UsageError: no such profile, not YAML, an unknown key, a value out of range.
    """
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else _SHIPPED.get(name)
    if path is None:
        hint = nearest(name, _SHIPPED) or f"shipped: {', '.join(_SHIPPED)}; a path works too"
        raise UsageError(f"profile {name}: not one of the shipped profiles", hint=hint)
    try:
        values = parse(read_text(path, MOST_YAML))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"profile {name}: cannot be read: {error}", hint=f"shipped: {', '.join(_SHIPPED)}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"profile {name}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            f"profile {name}: values that cannot be",
            offenders=[
                f"{'.'.join(map(str, one['loc'])) or name}: {one['msg'].lower().removeprefix('value error, ')}"
                for one in error.errors()
            ],
            hint=f"compare with a shipped one: {_SHIPPED['w4a16']}",
        ) from error


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
    yield _finite(metrics, code, subject)
    state = _floor(profile, floor, code, subject, dtype)
    yield state
    nothing = all(math.isnan(_value(metrics, name)) for name in profile.thresholds)
    for name, threshold in profile.thresholds.items():
        value, noise = _value(metrics, name), _value(floor or {}, name)
        if math.isnan(value):
            severity = Severity.INFO if threshold.optional and not nothing else Severity.INCONCLUSIVE
            found = "not measured"
        else:
            severity = _severity(value, threshold, noise)
            if state.severity is Severity.INCONCLUSIVE and not _fails_anyway(value, threshold, noise):
                severity = Severity.INCONCLUSIVE
            words = _measured(metrics, name, value)
            found = words if math.isnan(noise) else f"{words}, noise floor {_number((floor or {})[name])}"
        yield Finding(f"{code}.{name}", severity, subject, found, _expected(threshold, noise))


def _value(metrics: Mapping[str, float], name: str) -> float:
    """Return a metric, nan if not measured; for the mean KL, the upper end of its interval if that is known."""
    names = (_UPPER_END, _KL) if name == _KL else (name,)
    values = (metrics.get(one, math.nan) for one in names)
    return next((value for value in values if not math.isnan(value)), math.nan)


def _measured(metrics: Mapping[str, float], name: str, judged: float) -> str:
    """Describe a metric; with the judged value too, if that is the upper end of an interval."""
    value = metrics[name]
    return _number(value) if value == judged else f"{_number(value)}, judged by the 95 % limit {_number(judged)}"


def _finite(metrics: Mapping[str, float], code: str, subject: str) -> Finding:
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


def _floor(profile: Profile, floor: Mapping[str, float] | None, code: str, subject: str, dtype: str) -> Finding:
    """Return the finding on whether the noise floor is low enough for a verdict."""
    expected = f"mean KL at most {_number(profile.max_floor)}"
    level = math.nan if floor is None else floor.get(_KL, math.nan)
    if math.isnan(level):
        needed = any(threshold.needs_floor for threshold in profile.thresholds.values())
        severity = Severity.INCONCLUSIVE if needed else Severity.INFO
        return Finding(f"{code}.floor", severity, subject, "no noise floor measured", expected)
    severity = Severity.INCONCLUSIVE if level > profile.max_floor else Severity.PASS
    remedy = "" if severity is Severity.PASS else _LOWER if dtype != "float32" else _LOWEST
    found = f"rounding alone moves the logits by a mean KL of {_number(level)}"
    return Finding(f"{code}.floor", severity, subject, found, expected, remedy)


def _badness(value: float, threshold: Threshold) -> float:
    """Return a metric transformed so that a larger value is worse."""
    if threshold.direction == "one":
        return abs(value - 1)
    return -value if threshold.direction == "higher" else value


def _bounds(threshold: Threshold, noise: float) -> tuple[float, float]:
    """Return the badness up to which a metric passes and above which it fails, widened by the floor."""
    sign = -1 if threshold.direction == "higher" else 1
    bounds = sign * threshold.passes, sign * threshold.fail
    if math.isnan(noise) or not threshold.needs_floor:
        return bounds
    least = _badness(noise, threshold) * (threshold.times_floor or 1) + (threshold.below_floor or 0)
    return max(bounds[0], least), max(bounds[1], least)


def _severity(value: float, threshold: Threshold, noise: float) -> Severity:
    passes, fails = _bounds(threshold, noise)
    badness = _badness(value, threshold)
    if badness <= passes:
        return Severity.PASS
    return Severity.FAIL if badness > fails else Severity.WARN


def outlook(high: float, profile: Profile) -> Severity:
    """Return what a profile is expected to say of a model, by an estimated upper end of the mean KL's interval."""
    threshold = profile.thresholds.get(_KL)
    return Severity.FAIL if threshold is None else _severity(high, threshold, math.nan)


def _fails_anyway(value: float, threshold: Threshold, noise: float) -> bool:
    """Return whether a metric fails even with the whole floor subtracted from its badness."""
    perfect = -1.0 if threshold.direction == "higher" else 0.0
    excess = _badness(value, threshold) - (_badness(noise, threshold) - perfect)
    return excess > _bounds(threshold, noise)[1]  # false for a nan: without a floor nothing is certain


def _expected(threshold: Threshold, noise: float) -> str:
    """Describe the limits: `up to 0.05, fails above 0.1`."""
    words = {"lower": ("up to", "above"), "higher": ("from", "below"), "one": ("off 1 by up to", "above")}
    least, beyond = words[threshold.direction]
    passes, fails = (abs(bound) for bound in _bounds(threshold, noise))
    within = f"{least} {_number(passes)}"
    return within if passes == fails else f"{within}, fails {beyond} {_number(fails)}"


def _number(value: float) -> str:
    return f"{value:.4g}"
