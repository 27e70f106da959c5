"""Findings from an engine's start, its refusals and its numbers; see `engine` for the codes.

    mean |difference| of log-probabilities     at most 3 times the floor's, in each kind of probe
    largest |difference|                       at most 10 times the floor's: a single token depends on chance

or at most 1e-4 and 1e-3 nats, which no answer shows: in float32 an engine that adds in another order can be 4 times the
floor (4e-5 nats, vLLM on a real model).

The floor is the same number for the reference with one rounding of noise after each layer, on the same tokens. The top
token changes by chance where two tokens are nearly as likely. So an agreement may be below the floor's by the expected
deviation for the number of tokens, besides what profile `parity` allows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from g4convert.forward.probe import Probe
from g4convert.report import Finding, Severity
from g4convert.verification.engine.prompts import EngineRefusal, Started
from g4convert.verification.engine.scores import Parity
from g4convert.verification.gates import judge
from g4convert.verification.logits.noise import floor
from g4convert.verification.profiles import Profile

_LIMITS: Final = {"mean": 3.0, "largest": 10.0}
_LEAST: Final = {"mean": 1e-4, "largest": 1e-3}
"""Differences in nats that pass whatever the floor is."""
_COUNTED: Final = {"top1_agreement": "tokens", "top1_confident": "confident_tokens"}
_FLOORS: Final = ("mean", "largest", "kl_mean")
_OF_THE_MACHINE: Final = (
    *("No WNA16 MoE backend", "Failed to find a kernel", "failed to be inspected"),
    *("out of memory", "No available memory", "_OpNamespace"),
)
"""Parts of messages by which an engine refuses because of the machine, not because of the checkpoint."""
_WITHOUT_KERNEL: Final = "on a CPU `--dtype float32` needs no such kernel"
_PLACES: Final = {
    "start": "before it built the model",
    "build": "when it built the model",
    "load": "when it loaded the weights",
    "ready": "after it had loaded the weights",
}


@dataclass(frozen=True, slots=True)
class MeasuredParity:
    """Parity of an engine and of the reference with noise."""

    parity: Parity
    noise: Mapping[str, Parity]

    def floor_of(self, bucket: str, number: str) -> float:
        """Return the floor of a number of a bucket: the largest value among the sources of noise."""
        return max(float(getattr(source.buckets[bucket], number)) for source in self.noise.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON."""
        buckets = [
            asdict(bucket) | {f"floor_{number}": self.floor_of(bucket.name, number) for number in _FLOORS}
            for bucket in self.parity.buckets.values()
        ]
        return {"buckets": buckets, "parity": asdict(self.parity.metrics), "floor": self.floor()}

    def floor(self) -> dict[str, float]:
        """Return the floor of every metric."""
        return dict(floor({name: source.metrics for name, source in self.noise.items()}).values)


def _is_of_the_machine(refused: EngineRefusal) -> bool:
    """Return whether an engine refused because of the machine."""
    return any(words in refused.message for words in _OF_THE_MACHINE)


def judge_failed_start(refused: EngineRefusal) -> Iterator[Finding]:
    """Yield findings about an engine that refuses to load the checkpoint."""
    elsewhere = _is_of_the_machine(refused)
    place = _PLACES.get(refused.place, "")
    expected = "the engine loads the checkpoint"
    remedy = _WITHOUT_KERNEL if elsewhere else "see the findings of level static"
    severity = Severity.INCONCLUSIVE if elsewhere else Severity.FAIL
    yield Finding("engine.load", severity, "the engine", f"refused {place}: {refused.message}", expected, remedy)
    yield _stopped_finding("it does not load")


def judge_start(started: Started) -> Iterator[Finding]:
    """Yield findings from what an engine reported after loading."""
    expected = "every parameter is filled from the checkpoint"
    for parameter in started.unfilled:
        found = "no tensor reached it" if parameter.share > 0.999 else f"no tensor reached {parameter.share:.3g} of it"
        remedy = "the engine would serve what its memory held; level static names the tensor"
        yield Finding("engine.load", Severity.FAIL, parameter.name, found, expected, remedy)
    if started.unfilled:
        yield _stopped_finding("parameters are missing")
        return
    if started.parameters:
        found = f"all {started.parameters} parameters are filled, and every tensor had its place"
        yield Finding("engine.load", Severity.PASS, started.name, found, expected)
    else:
        found = "a server does not show whether every parameter was filled"
        yield Finding("engine.load", Severity.INFO, started.name, found, expected)
    for key in started.supplied:
        found = "missing; supplied for this run"
        yield Finding(
            "engine.config", Severity.WARN, key, found, "the engine stops without it", "add it to config.json"
        )
    products = "weights decoded at loading, in plain products" if started.decodes else "the engine's own"
    where = " ".join(filter(None, (started.dtype, started.device and f"on {started.device}")))
    yield Finding("engine.kernels", Severity.INFO, where or "the engine", products, "")


def _stopped_finding(why: str) -> Finding:
    return Finding("engine.stopped", Severity.INCONCLUSIVE, "level engine", f"not compared: {why}", "")


def judge_refusals(refusals: Mapping[str, EngineRefusal], started: Started) -> Iterator[Finding]:
    """Yield a finding for each refused prompt; checkpoint, machine or the server's options may be the cause."""
    for name, refused in refusals.items():
        severity = Severity.FAIL if started.parameters and not _is_of_the_machine(refused) else Severity.INCONCLUSIVE
        remedy = "" if started.parameters else "the server's own limits may be the reason"
        remedy = _WITHOUT_KERNEL if _is_of_the_machine(refused) else remedy
        yield Finding("engine.probes", severity, name, refused.message, "an answer", remedy)


def list_uncovered(probes: Sequence[Probe], asked: Sequence[Probe], started: Started) -> Iterator[Finding]:
    """Yield findings about inputs and properties that this level has not checked."""
    uncovered = ["decoding token by token", "more than one GPU"]
    if missing := sorted({probe.bucket for probe in probes} - {probe.bucket for probe in asked}):
        uncovered.append(f"{', '.join(missing)}: this engine is not given any")
    if started.unwatched:
        uncovered.append(f"whether {started.unwatched} parameters of narrow types are filled")
    if started.decodes:
        uncovered.append("the engine's 4-bit kernels")
    if started.causal:
        uncovered.append("pictures that see themselves: attention on this device is causal, and so was the reference's")
    for text in uncovered:
        yield Finding("engine.coverage", Severity.INFO, "not covered", text, "")
    for text in started.mended:
        yield Finding("engine.coverage", Severity.INFO, "mended in the engine, to run here", text, "")


def judge_parity(measured: MeasuredParity, profile: Profile, *, dtype: str = "float32") -> Iterator[Finding]:
    """Yield findings on the differences by kind of probe, and on all metrics by a profile, of an engine in a dtype."""
    for bucket in measured.parity.buckets.values():
        numbers = {number: (getattr(bucket, number), measured.floor_of(bucket.name, number)) for number in _LIMITS}
        times = {number: value / noise if noise else float(value > 0) for number, (value, noise) in numbers.items()}
        most = {number: max(_LIMITS[number] * noise, _LEAST[number]) for number, (_, noise) in numbers.items()}
        bad = [number for number, (value, _) in numbers.items() if not value <= most[number]]
        found = "; ".join(
            f"{number} {value:.3g}, {times[number]:.2g} times the floor" for number, (value, _) in numbers.items()
        )
        found += f"; top token {bucket.top1_agreement:.2%}; KL {bucket.kl_mean:.2g}"
        expected = ", ".join(f"{number} at most {limit:.2g}" for number, limit in most.items())
        severity = Severity.FAIL if bad else Severity.PASS
        yield Finding("engine.logprobs", severity, f"{bucket.name} ({bucket.tokens} tokens)", found, expected)
    metrics, noise = measured.parity.metrics.values, measured.floor()
    yield from judge(metrics, _allow_chance(profile, metrics, noise), noise, level="engine", dtype=dtype)


def _allow_chance(profile: Profile, metrics: Mapping[str, float], noise: Mapping[str, float]) -> Profile:
    """Return the profile with its limits of agreement lowered by three standard deviations of the difference."""
    thresholds = dict(profile.thresholds)
    for name, threshold in profile.thresholds.items():
        count = metrics.get(_COUNTED.get(name, ""), 0)
        if threshold.below_floor is not None and count and name in noise:
            share = (noise[name] * count + 1) / (count + 2)
            allowed = threshold.below_floor + 3 * math.sqrt(2 * share * (1 - share) / count)
            thresholds[name] = threshold.model_copy(update={"below_floor": allowed})
    return profile.model_copy(update={"thresholds": thresholds})
