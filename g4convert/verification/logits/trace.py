"""Examination of a candidate: modules on equal inputs, inputs that expose single faults, and a search for the culprit.

Runs after loss and parity are measured, on one probe of each kind, even if both passed: it also finds faults that are
too small to change the answers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from g4convert.forward.candidate import ModelCandidate
from g4convert.forward.models import Model, dtype_name
from g4convert.forward.probe import Probe
from g4convert.forward.streaming import stream_of
from g4convert.progress import Progress
from g4convert.report import Finding, Severity
from g4convert.verification.logits.activations import check_activations
from g4convert.verification.logits.blame import LIMITS, LOSS_LIMIT, Blame, BlameRow, Examination, blame, examine
from g4convert.verification.logits.capture import StoredReference
from g4convert.verification.logits.embedders import check_embedders, check_poolers
from g4convert.verification.logits.inputs import EMBEDDINGS
from g4convert.verification.logits.metrics import Metrics
from g4convert.verification.logits.parts import label
from g4convert.verification.logits.teacher import culprits
from g4convert.verification.probes.answers import decode_equals_prefill

_ROWS: Final = 8
_DECODE: Final = 1e-4
_SCORED: Final = 48
"""Most scored predictions of an examined probe: each is a row of logits for every swapped module."""
_TOKENS: Final = 96
"""Most tokens of a probe that is run again for every swap in the search for the loss."""
_LAYERS: Final = 8
"""Most swaps of layers, and of parts of the worst layer, in the search for the loss."""
_ROLES: Final = {"attention": "self_attn", "mlp": "mlp", "experts": "experts"}
"""Module of a layer that a recipe can keep, by role."""
_DECODED: Final = ("prose", "batch")


@dataclass(frozen=True, slots=True)
class Models:
    """Models to compare.

    Args:
        reference: the original, or its stored outputs; None judges parity only.
        dequantized: transformers' model with the dequantized weights.
        candidate: the model that runs on packed weights.
        rounded: `dequantized` in float32, if the models run in bf16; None, as for float32, measures the floor by
            noise alone.
    """

    reference: ModelCandidate | StoredReference | None
    dequantized: ModelCandidate
    candidate: ModelCandidate
    rounded: ModelCandidate | None = None


def trace(
    models: Models,
    probes: Sequence[Probe],
    measured: Mapping[str, Metrics],
    judged: Sequence[Finding],
    *,
    progress: Progress,
) -> tuple[list[Finding], dict[str, Blame]]:
    """Compare modules, and search for the modules that cause a failure.

    Args:
        models: models to compare.
        probes: all probes; some are run again.
        measured: metrics by comparison: `loss` and `parity`.
        judged: findings of the profiles on these metrics.
        progress: told of each step, and of its progress.

    Returns:
        Findings, and the table of blame of each comparison (`loss`, `parity`) that failed.
    """
    findings: list[Finding] = []
    blamed: dict[str, Blame] = {}
    failed = {kind for kind in measured if any(_has_failed(finding, f"logits.{kind}.") for finding in judged)}
    reference, dequantized, candidate = models.reference, models.dequantized, models.candidate
    progress.say("comparing the packed modules with the dequantized ones, one by one")
    limit = LIMITS[dtype_name(dequantized.model)]
    chosen = [probe.thinned(_SCORED) for probe in _worst_probes(probes, measured["parity"])]
    examined = examine(dequantized, candidate, chosen, limit=limit, progress=progress)
    if "parity" in failed or culprits(examined.errors, limit) or examined.differences:
        progress.say("swapping modules: parity")
        blamed["parity"] = blame(dequantized, candidate, chosen, examined, limit=limit, progress=progress)
    findings += _module_findings(examined, blamed.get("parity"), limit)
    findings += check_activations(dequantized, candidate, chosen[0], limit=limit)
    findings += check_embedders(dequantized.model, candidate.model, limit=limit)
    findings += check_poolers(candidate.model, limit=limit)
    findings += _decoding_findings(dequantized.model, candidate.model, probes)
    if "loss" in failed and isinstance(reference, ModelCandidate):
        progress.say("finding out which modules cost most, by giving them the original weights, one by one")
        chosen = [probe.begun(_TOKENS).thinned(_SCORED) for probe in _worst_probes(probes, measured["loss"])[:2]]
        examined = examine(reference, dequantized, chosen, limit=LOSS_LIMIT, progress=progress)
        blamed["loss"] = blame(
            reference, dequantized, chosen, examined, limit=LOSS_LIMIT, swaps=_LAYERS, roles=_ROLES, progress=progress
        )
    for kind, table in blamed.items():
        findings += _blame_findings(kind, table)
    findings += _coverage_findings(next(iter(measured.values())))
    return findings, blamed


def _has_failed(finding: Finding, start: str) -> bool:
    return finding.severity is Severity.FAIL and finding.code.startswith(start)


def _worst_probes(probes: Sequence[Probe], metrics: Metrics) -> list[Probe]:
    """Return the probe of each bucket with the largest mean KL, ordered by KL, largest first."""
    kl = {probe.name: -math.inf if math.isnan(probe.kl_mean) else probe.kl_mean for probe in metrics.probes}
    ordered = sorted(probes, key=lambda probe: -kl.get(probe.name, -math.inf))
    return list({probe.bucket: probe for probe in reversed(ordered)}.values())[::-1]


def _module_findings(examined: Examination, table: Blame | None, limit: float) -> Iterator[Finding]:
    """Yield a finding for each wrong module, and for each difference in masks, positions and embeddings."""
    shares = {row.module: row for row in table.rows} if table else {}
    wrong = culprits(examined.errors, limit)
    expected = f"at least {limit:.0f} dB, given the same inputs"
    for error in wrong[:_ROWS]:
        row = shares.get(error.label)
        words = f"{error.sqnr:.0f} dB" + (f", {100 * row.share:.0f} % of the KL" if row else "")
        found = f"{words}; {row.note}" if row and row.note else words
        yield Finding("logits.modules", Severity.FAIL, error.label, found, expected)
    if len(wrong) > _ROWS:
        yield Finding("logits.modules", Severity.FAIL, "other modules", f"{len(wrong) - _ROWS} more", expected)
    if not wrong and examined.errors:
        found = (
            f"{len(examined.errors)} modules, the worst {label(examined.worst.name)} with {examined.worst.sqnr:.0f} dB"
        )
        yield Finding("logits.modules", Severity.PASS, "all modules", found, expected)
    expected = "as in the dequantized model"
    for place, note in examined.differences.items():
        if not (place == EMBEDDINGS and wrong):  # the wrong embedder or tower is reported already
            yield Finding("logits.inputs", Severity.FAIL, place, note, expected)
    if not examined.differences:
        yield Finding("logits.inputs", Severity.PASS, "masks, positions, embeddings", "the same", expected)


def _decoding_findings(dequantized: Model, candidate: Model, probes: Iterable[Probe]) -> Iterator[Finding]:
    """Yield findings on whether tokens fed one by one through the KV cache give the logits of one forward.

    A difference of two roundings of the largest logit is always allowed, whatever the dequantized model's difference.
    """
    rounding = 2 * torch.finfo(candidate.config.dtype).eps
    for bucket in _DECODED:
        probe = next((probe for probe in probes if probe.bucket == bucket), None)
        if probe is None or stream_of(candidate) is not None:
            continue
        allowed, difference = max(_DECODE, rounding), decode_equals_prefill(candidate, probe)
        if difference > allowed:
            allowed = max(allowed, 4 * decode_equals_prefill(dequantized, probe))
        severity = Severity.PASS if difference <= allowed else Severity.FAIL
        words, expected = f"logits {difference:.1e} apart", f"at most {allowed:.1e} of the largest logit"
        yield Finding("logits.decode", severity, f"decoding with KV cache, {bucket}", words, expected)


def _blame_findings(kind: str, table: Blame) -> Iterator[Finding]:
    """Yield findings on the first rows of a table of blame."""
    if table.control != table.kl:
        words = f"mean KL {table.kl:g}, and {table.control:g} when run again"
        yield Finding("logits.blame", Severity.INCONCLUSIVE, f"{kind}: control", words, "the same numbers twice")
    base = f"of the KL {table.kl:.4g} over {table.predictions} predictions of {' and '.join(table.probes)}"
    words = "is the cost of rounding it" if kind == "loss" else "goes when it is swapped"
    for row in _first_rows(table.rows):
        found = f"{round(100 * row.share)} % {base} {words}" + (f"; {row.note}" if row.note else "")
        yield Finding("logits.blame", Severity.INFO, row.module, found, "")
    if not table.clear and kind == "parity":
        yield Finding("logits.blame", Severity.INFO, kind, "no single module explains most of the KL", "")


def _first_rows(rows: Sequence[BlameRow]) -> Iterator[BlameRow]:
    """Yield the first three rows of each kind; kinds are kept apart since a layer's share includes its parts'."""
    for kind in dict.fromkeys(row.kind for row in rows):
        yield from [row for row in rows if row.kind == kind][:3]


def _coverage_findings(metrics: Metrics) -> Iterator[Finding]:
    """Yield a finding on the number of experts that some token was routed to."""
    total = sum(len(router.hits) for router in metrics.routers)
    if total:
        severity = Severity.INFO if metrics.experts_unhit else Severity.PASS
        words = f"{total - metrics.experts_unhit} of {total} reached by the probes"
        remedy = (
            "more tokens: what is wrong in the others is seen by the level weights only"
            if metrics.experts_unhit
            else ""
        )
        yield Finding("logits.coverage", severity, "experts", words, "all of them", remedy)
