"""Judgement of level `logits`: what four bits cost, whether the packed path is right, and which module is to blame.

    original --loss--> dequantized --parity--> candidate (the packed path)
                            |
                            +--> itself with rounding noise: the floor

Each model runs all probes once, so streamed weights are read once per model, and the states before its head are kept.
From these states the logits of all models are computed a few rows at a time, and compared (`pairs`). Then a few
probes, one of each kind, are run again to compare modules on equal inputs, which finds faults too small to change the
answer. A failure is traced to modules by swapping them.

    logits.loss.*, logits.parity.*    metrics against a profile (`gates`)
    logits.modules, logits.inputs     module by module; masks, positions and placement of soft tokens
    logits.activation, .embedder, .pooler    inputs that expose one fault each (`activations`, `embedders`)
    logits.blame                      modules that cause a failure
    logits.coverage                   experts that no probe reached
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from g4convert.forward.candidate import ModelCandidate, ProbeOutputs, run_all
from g4convert.forward.models import Model, dtype_name
from g4convert.forward.probe import Probe
from g4convert.progress import Progress
from g4convert.report import Finding, LevelResult
from g4convert.verification.gates import judge
from g4convert.verification.logits.capture import StoredReference
from g4convert.verification.logits.kept import KeptProbe, Projection
from g4convert.verification.logits.metrics import HISTOGRAM_EDGES, Comparison, Metrics
from g4convert.verification.logits.noise import EPSILON, Floor, adding_noise, floor
from g4convert.verification.logits.pairs import Pair, score_pairs
from g4convert.verification.logits.parts import decoder_layers
from g4convert.verification.logits.scores import TopLogits
from g4convert.verification.logits.teacher import adapt_arguments
from g4convert.verification.logits.trace import Models, trace
from g4convert.verification.probes.suite import digest
from g4convert.verification.profiles import METRICS_VERSION, Profile

_SEED: Final = 1
_ORIGINAL: Final = "original"
_DEQUANTIZED: Final = "dequantized"
_NOISES: Final = ("noise", "rounding")
_TITLES: Final = {
    _ORIGINAL: "the original",
    _DEQUANTIZED: "the dequantized weights",
    "noise": "the dequantized weights with rounding noise",
    "rounding": "the dequantized weights in float32",
    "parity": "the packed weights",
}
"""Names of the passes, for progress."""
_LARGE_STATES: Final = 1 << 30


@dataclass(slots=True)
class _Passes:
    """Passes of several models over the same probes, and their comparison pair by pair.

    Args:
        probes: probes to run.
        projection: projection of hidden states; None keeps them whole.
        experts: number of experts in a layer.
        progress: told of the progress of each step.
        kept: kept outputs of the models that have run, by model and probe.
        comparisons: comparisons, by names of reference and candidate.
    """

    probes: Sequence[Probe]
    projection: Projection | None
    experts: int
    progress: Progress
    kept: dict[str, Mapping[str, KeptProbe]] = field(default_factory=dict)
    comparisons: dict[Pair, Comparison] = field(default_factory=dict)

    def run(
        self, name: str, candidate: ModelCandidate, *, against: str | None, probes: Sequence[Probe] | None = None
    ) -> None:
        """Run a model on the probes; hidden states are kept only if other models are compared with it.

        Args:
            name: name of the model.
            candidate: the model.
            against: name of the reference that it is compared with; None for no comparison.
            probes: a part of the probes, or the same probes with arguments of another dtype; all by default.
        """
        comparison = Comparison(experts=self.experts, projection=self.projection)
        reference = self.kept.get(against or "", {})
        inside = name in {_ORIGINAL, _DEQUANTIZED}

        def keep(probe: Probe, outputs: ProbeOutputs) -> KeptProbe:
            if reference:
                comparison.add_states(probe, reference[probe.name], outputs)
            self.progress.tick(probe.response.numel())
            return KeptProbe.of(probe, outputs, projection=self.projection, inside=inside)

        run = self.probes if probes is None else probes
        self.progress.step(f"running {_TITLES[name]}", sum(probe.response.numel() for probe in run), "")
        self.kept[name] = {probe.name: kept for probe, kept in zip(run, run_all(candidate, run, keep), strict=True)}
        if against is not None:
            self.comparisons[against, name] = comparison

    def measure(self) -> dict[str, Metrics]:
        """Return each candidate's distance from its reference."""
        together: dict[tuple[str, ...], list[Pair]] = {}
        for pair in self.comparisons:
            together.setdefault(self._scored_probes(pair[1]), []).append(pair)
        probes = {probe.name: probe for probe in self.probes}
        for names, pairs in together.items():
            scored = [probes[name] for name in names]
            self.progress.step("comparing logits", sum(len(probe.targets) for probe in scored), "")
            self._score(pairs, scored)
        return {name: comparison.metrics() for (_, name), comparison in self.comparisons.items()}

    def _scored_probes(self, name: str) -> tuple[str, ...]:
        """Return the names of probes that a model has run and that have predictions to score."""
        return tuple(probe.name for probe in self.probes if len(probe.scored) and probe.name in self.kept[name])

    def _score(self, pairs: Sequence[Pair], probes: Sequence[Probe]) -> None:
        """Score pairs on the same probes, and add the scores to their comparisons."""
        models = dict.fromkeys(name for pair in pairs for name in pair)
        named = {name: [self.kept[name][probe.name].logits for probe in probes] for name in models}
        scored = score_pairs(named, pairs, [probe.targets for probe in probes], tell=self.progress.tick)
        for pair, scores in scored.items():
            bounded = isinstance(named[pair[0]][0], TopLogits)
            for probe, probe_scores in zip(probes, scores, strict=True):
                self.comparisons[pair].add_scores(probe, probe_scores, lower_bound=bounded)


def check_logits(
    models: Models,
    probes: Sequence[Probe],
    *,
    loss: Profile,
    parity: Profile,
    progress: Progress,
) -> LevelResult:
    """Judge loss and parity, and name the modules that cause a failure.

    Args:
        models: models to compare.
        probes: probes with the answers to score; empty to take the probes of the stored reference.
        loss: thresholds for the cost of four bits.
        parity: thresholds for the candidate.
        progress: told of each step, and of its progress in tokens.

    Returns:
        Findings and metrics.
    """
    stored = models.reference if isinstance(models.reference, StoredReference) else None
    probes = probes or (stored.probes if stored else ())
    findings: list[Finding] = []
    passes = _Passes(probes, *_choose_storage(models.dequantized.model, probes, stored), progress)
    measured, noise = _run_passes(models, passes)
    dtype = dtype_name(models.dequantized.model)
    for profile in (loss, parity):
        if profile.compares in measured:
            findings += judge(measured[profile.compares].values, profile, noise.values, dtype=dtype)
    inside, blamed = trace(models, probes, measured, findings, progress=passes.progress)
    metrics: dict[str, Any] = {
        "metrics_version": METRICS_VERSION,
        "dtype": dtype,
        "probes": {"count": len(probes), "digest": digest(probes)},
        "floor": noise.to_dict(),
        "kl_histogram_edges": list(HISTOGRAM_EDGES),
        "profiles": {profile.compares: profile.model_dump(by_alias=True) for profile in (loss, parity)},
    }
    metrics |= {kind: asdict(compared) for kind, compared in measured.items()}
    return LevelResult(
        (*findings, *inside), metrics | {"blame": {kind: asdict(table) for kind, table in blamed.items()}}
    )


def _choose_storage(
    model: Model, probes: Sequence[Probe], stored: StoredReference | None
) -> tuple[Projection | None, int]:
    """Return the projection of kept hidden states (None keeps them whole), and the number of experts in a layer."""
    config = model.config.get_text_config()
    tokens = sum(probe.response.numel() for probe in probes)
    large = 4 * tokens * config.hidden_size * config.num_hidden_layers > _LARGE_STATES
    projection = stored.projection if stored else Projection() if large else None
    return projection, getattr(config, "num_experts", None) or 0


def _choose_noise_probes(models: Models, passes: _Passes) -> Sequence[Probe]:
    """Return the probes that the floor is measured on.

    The floor of a dense model in float32 is millions of times below every limit, so one probe of each bucket is enough.
    In bf16, and in models where noise may route a token to another expert, all probes are run.
    """
    if models.rounded is not None or passes.experts or dtype_name(models.dequantized.model) != "float32":
        return passes.probes
    return list({probe.bucket: probe for probe in reversed(passes.probes)}.values())[::-1]


def _run_passes(models: Models, passes: _Passes) -> tuple[dict[str, Metrics], Floor]:
    """Run every pass over the probes; return the metrics of `loss` and `parity` by name, and the floor."""
    original = None
    match models.reference:
        case None:
            pass
        case StoredReference(kept=kept):
            original, passes.kept[_ORIGINAL] = _ORIGINAL, kept
        case reference:
            passes.progress.say("running the original")
            passes.run(original := _ORIGINAL, reference, against=None)
    passes.progress.say("running the dequantized weights")
    passes.run(_DEQUANTIZED, models.dequantized, against=original)
    model = models.dequantized.model
    dtype = dtype_name(model)
    passes.progress.say(f"running them again with tiny noise, to see how much KL {dtype} rounding alone makes")
    with adding_noise(list(decoder_layers(model).values()), EPSILON[dtype], seed=_SEED):
        passes.run("noise", models.dequantized, against=_DEQUANTIZED, probes=_choose_noise_probes(models, passes))
    if models.rounded is not None:
        wide = models.rounded.model
        wider = [replace(probe, arguments=adapt_arguments(probe.arguments, model, wide)) for probe in passes.probes]
        passes.run("rounding", models.rounded, against=_DEQUANTIZED, probes=wider)
    passes.progress.say("running the packed weights")
    passes.run("parity", models.candidate, against=_DEQUANTIZED)
    passes.progress.say("comparing their logits")
    metrics = passes.measure()
    measured = {kind: metrics[name] for kind, name in (("loss", _DEQUANTIZED), ("parity", "parity")) if name in metrics}
    return measured, floor({name: metrics[name] for name in _NOISES if name in metrics})
