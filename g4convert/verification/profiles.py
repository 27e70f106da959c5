"""Profiles: the limits of each metric, shipped as YAML or the user's own, read strictly.

A profile of the user's own may be strict or mild, but not turned round: the direction of a metric is the metric's own,
no flag is read as a number, and a distance from one is below 1.
"""

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
from g4convert.places import expand_home
from g4convert.plain_yaml import parse
from g4convert.suggestions import suggest

_PACKAGE: Final = Path(__file__).parents[1]
_SHIPPED: Final = {
    path.stem: path
    for directory in (_PACKAGE / "recipes" / "profiles", _PACKAGE.parent / "recipes" / "profiles")
    for path in sorted(directory.glob("*.yaml"))
}

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
    path = expand_home(name) if "/" in name or name.endswith((".yaml", ".yml")) else _SHIPPED.get(name)
    if path is None:
        hint = suggest(name, _SHIPPED) or f"shipped: {', '.join(_SHIPPED)}; a path works too"
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
                f"{'.'.join(map(str, fault['loc'])) or name}: {fault['msg'].lower().removeprefix('value error, ')}"
                for fault in error.errors()
            ],
            hint=f"compare with a shipped one: {_SHIPPED['w4a16']}",
        ) from None  # pydantic's text would come first
