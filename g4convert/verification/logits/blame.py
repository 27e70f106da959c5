"""The module to blame: the ranked table behind "layers.17.experts: 92 % of the KL".

    1. `teacher` runs every module on the reference's inputs and measures how far its outputs differ.
    2. `inputs` compares masks, positions and embeddings, which no module computes.
    3. One module (or input) of the candidate at a time is replaced by the reference's; the KL to the reference that
       goes away is its share. The unchanged candidate, run again, is the control: its KL must be as before.

Step 1 finds wrong modules, step 3 measures their effect: an error of 20 dB in a module on which the logits do not
depend explains nothing. Where no module stands out, as when four bits cost a little everywhere, the worst layers and
the parts of the most important layer are swapped. For a loss, all modules of a role are swapped too, since a recipe
can keep a role. Shares need not sum to 100 %: faults can hide each other, and a layer's share includes its parts'.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import torch

from g4convert.forward.candidate import ModelCandidate, ProbeOutputs
from g4convert.forward.logits import HeldLogits, Page, concatenate_logits, join_logits
from g4convert.forward.probe import Probe
from g4convert.names import Name
from g4convert.progress import Progress
from g4convert.verification.logits import inputs
from g4convert.verification.logits.pairs import compare
from g4convert.verification.logits.parts import decoder_layers, label, roots, swapping_module
from g4convert.verification.logits.teacher import ModuleError, Teacher, culprits

LIMITS: Final[Mapping[str, float]] = {"float32": 90.0, "bfloat16": 30.0, "float16": 45.0}
"""Least SQNR in dB of a correct module on equal inputs, by the dtype of the forward. Correct modules have 120 dB and
more in float32, 40 to 50 in bf16; exact GELU in place of the tanh form gives 74."""

LOSS_LIMIT: Final = 10.0
"""Least SQNR in dB of a module whose weights are rounded to four bits; sound modules have 17 dB and more."""

_EXPLAINED: Final = 0.5


@dataclass(frozen=True, slots=True)
class Examination:
    """Errors of a candidate on the reference's inputs.

    Args:
        errors: errors of all modules that both models have.
        differences: descriptions of the differences in masks, positions and embeddings, by place.
    """

    errors: tuple[ModuleError, ...]
    differences: Mapping[str, str]

    @property
    def worst(self) -> ModuleError:
        """The module with the lowest SQNR."""
        return min(self.errors, key=lambda error: error.sqnr)


@dataclass(frozen=True, slots=True)
class BlameRow:
    """One row of the table.

    Args:
        module: path of the module without the prefix of all text modules; `inputs: ...` for an input.
        kind: `module` (wrong itself), `inputs`, `role`, or, where these explain little, `layer` and `part` of a layer.
        share: part of the KL that goes away when the module is replaced by the reference's.
        kl: KL that is left, nats per token.
        sqnr: SQNR of the module's outputs on the reference's inputs, dB; nan if not measured.
        note: description of the difference.
    """

    module: str
    kind: str
    share: float
    kl: float
    sqnr: float
    note: str


@dataclass(frozen=True, slots=True)
class Blame:
    """Table of the modules that cause the KL, largest share first.

    Args:
        kl: mean KL of the unchanged candidate on the probes.
        control: the same KL, measured again after all swaps.
        probes: names of the probes.
        predictions: number of scored predictions in the probes.
        compared: number of modules that were run on the reference's inputs.
        rows: rows of the table.
    """

    kl: float
    control: float
    probes: tuple[str, ...]
    predictions: int
    compared: int
    rows: tuple[BlameRow, ...]

    @property
    def clear(self) -> bool:
        """True if one row explains at least half of the KL, and the control gave the same KL."""
        return self.control == self.kl and bool(self.rows) and self.rows[0].share >= _EXPLAINED


def examine(
    reference: ModelCandidate,
    candidate: ModelCandidate,
    probes: Sequence[Probe],
    *,
    limit: float,
    progress: Progress | None = None,
) -> Examination:
    """Run every module of a candidate on the inputs of its namesake in the reference.

    Args:
        reference: the reference model, of the candidate's dtype.
        candidate: the model to examine; modules are matched by name.
        probes: probes that both models are run on, one by one.
        limit: SQNR in dB below which a module is wrong: `LIMITS[dtype]` for parity, `LOSS_LIMIT` for loss.
        progress: told of finished probes.
    """
    progress = progress or Progress()
    progress.step("comparing modules", len(probes), "prompts")
    words: dict[str, str] = {}
    reference, candidate = (replace(model, whole=True) for model in (reference, candidate))
    with Teacher(reference.model, candidate.model, limit=limit) as teacher:
        for probe in probes:
            with inputs.recording_inputs(reference.model) as expected:
                reference.run(probe)
            with inputs.recording_inputs(candidate.model) as actual, inputs.resting_layers(candidate.model):
                candidate.run(probe)
            words |= inputs.differences(expected, actual, relative=10 ** (-limit / 20))
            progress.tick(1)
    progress.wait()
    return Examination(teacher.errors(), words)


def blame(  # noqa: PLR0913 -- two models, what to run, what is known, two limits, and who is told
    reference: ModelCandidate,
    candidate: ModelCandidate,
    probes: Sequence[Probe],
    examined: Examination,
    *,
    limit: float,
    swaps: int = 12,
    roles: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Blame:
    """Rank the modules of a candidate by how much of its KL they cause.

    Args:
        reference: the reference model, of the candidate's dtype.
        candidate: the model to examine; modules are matched by name.
        probes: a few probes that show the fault; their logits are held in memory.
        examined: result of `examine`.
        limit: SQNR in dB below which a module is wrong: `LIMITS[dtype]` for parity, `LOSS_LIMIT` for loss.
        swaps: most modules to swap in each round (culprits, worst layers, parts of a layer).
        roles: roles to swap in all layers at once: the path of the role's module inside a layer, by name of the role.
        progress: told of finished swaps.

    Returns:
        The table.
    """
    progress = progress or Progress()
    measure = _KlMeasure(reference, candidate, probes, progress)
    errors = examined.errors
    wrong = culprits(errors, limit)[:swaps]
    about = len(wrong) + len(examined.differences) + (0 if wrong else swaps + 4) + len(roles or {})
    progress.step("restoring modules one by one", about + 2, "")  # the candidate as it is runs before and after
    kl = measure.kl(nullcontext())
    rows = [measure.swap(error, kl) for error in wrong]
    if sum(row.share for row in rows) < _EXPLAINED:
        rows += measure.force_inputs(kl, examined.differences)
    if max((row.share for row in rows), default=0.0) < _EXPLAINED:
        rows += _swap_layers(measure, errors, kl, {row.module for row in rows}, swaps)
    rows += (row for role, leaf in (roles or {}).items() for row in measure.swap_role(role, leaf, kl))
    ranked = sorted(rows, key=lambda row: -row.share)
    names = tuple(probe.name for probe in probes)
    predictions = sum(len(probe.targets) for probe in probes)
    return Blame(kl, measure.kl(nullcontext()), names, predictions, len(errors), tuple(ranked))


def _swap_layers(
    measure: "_KlMeasure", errors: Sequence[ModuleError], kl: float, listed: set[str], swaps: int
) -> Iterator[BlameRow]:
    """Swap the roots with the lowest SQNR, then those parts of the root with the largest share that swap alone."""
    by_name = {error.name: error for error in errors if error.sqnr != float("inf")}
    worst = sorted((by_name[name] for name in measure.roots if name in by_name), key=lambda error: error.sqnr)
    best: tuple[float, str] = (0.0, "")
    for error in worst[:swaps]:
        row = measure.swap(error, kl)
        best = max(best, (row.share, error.name))
        if row.module not in listed:
            yield replace(row, kind="layer")
    inside = [error for name, error in by_name.items() if Name(name).owner == best[1]]
    parts = [error for error in inside if measure.place_of(error.name) == error.name]
    for error in sorted(parts, key=lambda error: error.sqnr)[:swaps]:
        if error.label not in listed:
            yield replace(measure.swap(error, kl), kind="part")


class _KlMeasure:
    """Measurement of the candidate's KL to the reference on the chosen probes, with one part of it swapped."""

    def __init__(
        self, reference: ModelCandidate, candidate: ModelCandidate, probes: Sequence[Probe], progress: Progress
    ) -> None:
        self._reference = reference
        self._candidate = candidate
        self._probes = probes
        logits = concatenate_logits([reference.run(probe).rows for probe in probes])  # once, for every swap
        self._together = HeldLogits(logits)
        self._logits = [HeldLogits(part) for part in torch.split(logits, [len(probe.scored) for probe in probes])]
        self._pages = {"reference": Page(), "candidate": Page()}
        self.roots = frozenset(roots(candidate.model))
        self._progress = progress

    def kl(self, change: AbstractContextManager[None]) -> float:
        """Return the mean KL over the scored tokens while `change` is active."""
        with change:
            return self._mean_kl([self._candidate.run(probe) for probe in self._probes])

    def _mean_kl(self, outputs: Sequence[ProbeOutputs]) -> float:
        """Return the mean KL of the candidate's outputs; probes that share a head share one matrix product."""
        parts = join_logits([output.rows for output in outputs])
        expected, targets = self._logits, [probe.targets for probe in self._probes]
        if len(parts) < len(expected):
            expected, targets = [self._together], [torch.cat(targets)]
        scores = zip(expected, parts, targets, strict=True)
        total = sum(float(compare(reference, part, true, self._pages).kl.sum()) for reference, part, true in scores)
        self._progress.tick(1)
        return total / len(self._together)

    def swap(self, error: ModuleError, kl: float) -> BlameRow:
        """Replace one module of the candidate by the reference's, and return its row of the table."""
        name, note = error.name, ", ".join(error.tensors) and f"differs: {', '.join(error.tensors)}"
        place = self.place_of(name)
        if place != name:
            note = f"{note}; swapped with all of {label(place)}".lstrip("; ")
        remaining = self.kl(swapping_module(self._candidate.model, self._reference.model, place))
        return BlameRow(error.label, "module", _share(kl, remaining), remaining, error.sqnr, note)

    def swap_role(self, role: str, leaf: str, kl: float) -> Iterator[BlameRow]:
        """Replace the modules of one role in every layer by the reference's, and yield the role's row if possible."""
        layers = decoder_layers(self._candidate.model)
        names = [f"{name}.{leaf}" for name, layer in layers.items() if hasattr(layer, leaf)]
        if not names or any(self.place_of(name) != name for name in names):
            return
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(swapping_module(self._candidate.model, self._reference.model, name))
            remaining = self.kl(nullcontext())
        yield BlameRow(role, "role", _share(kl, remaining), remaining, float("nan"), f"{leaf} of {len(names)} layers")

    def force_inputs(self, kl: float, differences: Mapping[str, str]) -> Iterator[BlameRow]:
        """Run the candidate with each differing mask, position or embedding of the reference in turn; yield its row."""
        recorded: list[inputs.Inputs] = []
        for probe in self._probes if differences else ():
            with inputs.recording_inputs(self._reference.model) as expected:
                self._reference.run(probe)
            recorded.append(expected)
        for place, note in differences.items():
            outputs: list[ProbeOutputs] = []
            for probe, reference_inputs in zip(self._probes, recorded, strict=True):
                with inputs.forcing_input(self._candidate.model, reference_inputs, place):
                    outputs.append(self._candidate.run(probe))
            remaining = self._mean_kl(outputs)
            yield BlameRow(f"inputs: {place}", "inputs", _share(kl, remaining), remaining, float("nan"), note)

    def place_of(self, name: str) -> str:
        """Return the module to swap for `name`: its root, if weights are loaded only while the root runs."""
        root = next((root for root in self.roots if root in {name, *Name(name).owners()}), name)
        models = self._candidate.model, self._reference.model
        loaded = (tensor for model in models for tensor in model.get_submodule(root).state_dict().values())
        return root if any(tensor.is_meta for tensor in loaded) else name


def _share(kl: float, remaining: float) -> float:
    """Return the part of `kl` that is gone when `remaining` is left; 1 if `kl` is infinite and `remaining` is not."""
    if kl in {0.0, remaining}:
        return 0.0
    return 1.0 if kl == float("inf") else 1 - remaining / kl
