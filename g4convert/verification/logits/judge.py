"""Level `logits`: what four bits cost, whether the path that runs is the one meant, and which module is to blame.

    original --loss--> dequantized --parity--> the path that runs
                            |
                            +--> itself with rounding noise: the floor

Each model runs all probes once and its outputs are reduced at once, so streamed weights are read once a model; only
the logits that count are kept, in files where they are many. After that a few probes, one of each kind, are run again
to compare module by module on equal inputs, which finds faults too small for the answer to change. What fails is
traced by swapping modules.

    logits.loss.*, logits.parity.*    metrics against a profile (`gates`)
    logits.modules, logits.inputs     module by module; masks, positions and placement of soft tokens
    logits.activation, .embedder, .pooler    inputs made for one fault each (`module_probes`)
    logits.blame                      who causes what failed
    logits.coverage                   experts that no probe reached
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from g4convert.forward.candidate import Candidate, Outputs
from g4convert.forward.models import Model
from g4convert.report import Finding
from g4convert.verification.gates import Profile, judge
from g4convert.verification.logits.capture import Captured
from g4convert.verification.logits.kept import Kept, Projection, Shelf, run_each
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES, METRICS_VERSION, Comparison, Metrics
from g4convert.verification.logits.noise import EPSILON, Floor, floor, noisy
from g4convert.verification.logits.teacher import decoder_layers, like
from g4convert.verification.logits.trace import Models, dtype_name, trace
from g4convert.verification.probes.suite import Probe, digest

__all__ = ["Judged", "Models", "check_logits"]

_SEEDS: Final = (1, 2)
_LARGE_STATES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Judged:
    """Findings, and the numbers behind them as JSON."""

    findings: tuple[Finding, ...]
    metrics: Mapping[str, Any]


@dataclass(slots=True)
class _Passes:
    """Runs one model after the other over the same probes.

    Args:
        probes: what is run.
        projection: of hidden states; None keeps them whole.
        experts: of a layer.
        shelf: for logits.
    """

    probes: Sequence[Probe]
    projection: Projection | None
    experts: int
    shelf: Shelf

    def kept(self, reference: Candidate) -> dict[str, Kept]:
        """Return the outputs to compare others with."""
        keep = partial(Kept.of, projection=self.projection, shelf=self.shelf)
        found = run_each(reference, self.probes, keep)
        return {probe.name: one for probe, one in zip(self.probes, found, strict=True)}

    def compared(self, candidate: Candidate, reference: Mapping[str, Kept]) -> Metrics:
        """A candidate against a reference that has run."""
        comparison = self._comparison()
        run_each(candidate, self.probes, lambda probe, outputs: comparison.add(probe, reference[probe.name], outputs))
        return comparison.metrics()

    def both(self, candidate: Candidate, reference: Mapping[str, Kept]) -> tuple[Metrics, dict[str, Kept]]:
        """A candidate against a reference, and what to compare others with, in one pass."""
        comparison = self._comparison()

        def keep(probe: Probe, outputs: Outputs) -> Kept:
            comparison.add(probe, reference[probe.name], outputs)
            return Kept.of(probe, outputs, projection=self.projection, shelf=self.shelf)

        found = run_each(candidate, self.probes, keep)
        return comparison.metrics(), {probe.name: one for probe, one in zip(self.probes, found, strict=True)}

    def _comparison(self) -> Comparison:
        return Comparison(experts=self.experts, projection=self.projection)


def check_logits(
    models: Models,
    probes: Sequence[Probe],
    *,
    loss: Profile,
    parity: Profile,
    say: Callable[[str], None] = lambda _: None,
) -> Judged:
    """Judge loss and parity, and name who is to blame for what fails.

    Args:
        models: what is compared.
        probes: with the answers that count; a stored reference has its own, and these are not read.
        loss: thresholds for what four bits cost.
        parity: thresholds for the path that runs.
        say: told what is done next.

    Returns:
        Findings and metrics.
    """
    stored = models.reference if isinstance(models.reference, Captured) else None
    probes = stored.probes if stored else probes
    findings: list[Finding] = []
    with TemporaryDirectory(prefix="g4convert-") as directory:
        passes = _Passes(probes, *_economy(models.dequantized.model, probes, stored), Shelf(Path(directory)))
        measured, noise = _measure(models, passes, say)
        for profile in (loss, parity):
            if profile.compares in measured:
                findings += judge(measured[profile.compares].values, profile, noise.values)
        inside, blamed = trace(models, probes, measured, findings, say)
        findings += inside
    metrics: dict[str, Any] = {
        "metrics_version": METRICS_VERSION,
        "dtype": dtype_name(models.dequantized.model),
        "probes": {"count": len(probes), "digest": digest(probes)},
        "floor": noise.to_dict(),
        "kl_histogram_edges": list(HISTOGRAM_EDGES),
        "profiles": {profile.compares: profile.model_dump(by_alias=True) for profile in (loss, parity)},
    }
    metrics |= {kind: one.to_dict() for kind, one in measured.items()}
    return Judged(tuple(findings), metrics | {"blame": {kind: one.to_dict() for kind, one in blamed.items()}})


def _economy(model: Model, probes: Sequence[Probe], stored: Captured | None) -> tuple[Projection | None, int]:
    """Return the projection of kept hidden states, and the number of a layer's experts."""
    config = model.config.get_text_config()
    tokens = sum(probe.response.numel() for probe in probes)
    large = 4 * tokens * config.hidden_size * config.num_hidden_layers > _LARGE_STATES
    projection = stored.projection if stored else Projection() if large else None
    return projection, getattr(config, "num_experts", None) or 0


def _measure(models: Models, passes: _Passes, say: Callable[[str], None]) -> tuple[dict[str, Metrics], Floor]:
    """Every pass over the probes: loss and parity by name, and the floor."""
    measured: dict[str, Metrics] = {}
    match models.reference:
        case None:
            say("running the dequantized weights")
            dequantized = passes.kept(models.dequantized)
        case Captured(kept=kept):
            say("running the dequantized weights")
            measured["loss"], dequantized = passes.both(models.dequantized, kept)
        case reference:
            say("running the original")
            original = passes.kept(reference)
            say("running the dequantized weights")
            measured["loss"], dequantized = passes.both(models.dequantized, original)
    say("measuring the noise floor")
    sources = {}
    model = models.dequantized.model
    for seed in _SEEDS:
        with noisy(list(decoder_layers(model).values()), EPSILON[dtype_name(model)], seed=seed):
            sources[f"noise {seed}"] = passes.compared(models.dequantized, dequantized)
    if models.rounded is not None:
        given, wide = models.dequantized.model, models.rounded.model
        wider = [replace(probe, arguments=like(probe.arguments, given, wide)) for probe in passes.probes]
        sources["rounding"] = replace(passes, probes=wider).compared(models.rounded, dequantized)
    if models.candidate is not None:
        say("running the packed weights")
        measured["parity"] = passes.compared(models.candidate, dequantized)
    return measured, floor(sources)
