"""The measures of a fit: KL if the memory holds the decoder, output errors if not.

A few hundred tokens leave about 10% noise in each KL, and a choice among hundreds prefers losses that are low by
chance. So losses are smoothed before the choice; measured losses are kept too.

    log loss of a part in a packing  =  level of the part  +  level of the packing

Groups of 128 instead of 32 raise the error of every layer by about the same factor, so parts of one kind share the
factors between packings of one bit width.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import is_roomy, torch_device
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.fitting.bench import Bench
from g4convert.fitting.choices import label_form
from g4convert.fitting.inputs import Inputs
from g4convert.fitting.outputs import OutputErrors
from g4convert.fitting.problem import Losses, Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import LossUnit, Measure, Sensitivities
from g4convert.fitting.standing import StandIn, scale_losses
from g4convert.fitting.target import Loss, Target
from g4convert.forward.load import DTYPES, DTypeName, load
from g4convert.quantities import size
from g4convert.run_options import MemoryUse

if TYPE_CHECKING:
    from g4convert.fitting.parts import Part


@dataclass(frozen=True, slots=True)
class Measures:
    """The two measures of a fit.

    Args:
        single: measures a change of one part, by the method that rounds in memory.
        whole: measures a change of all parts, by the recipe's method; KL is measured on held-out texts.
        unit: unit of the losses.
        share: share of the recipe's method in the loss of parts of layers, see `standing`.
    """

    single: Measure
    whole: Measure
    unit: LossUnit
    share: float

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 -- a model, how it is rounded, on what, and how it runs
        cls,
        checkpoint: Checkpoint,
        rounder: Rounder,
        inputs: Inputs,
        sensitivities: Sensitivities,
        dtype: DTypeName,
        device: str,
    ) -> "Measures":
        """Make the measures; load the model only for KL."""
        share = rounder.share
        if sensitivities.basis.unit is LossUnit.OUTPUT_ERROR:
            errors = OutputErrors(checkpoint, rounder, inputs.ids, sensitivities.losses)
            return cls(errors, errors if share == 1 else StandIn(errors, share), LossUnit.OUTPUT_ERROR, share)
        model = load(checkpoint, dtype=dtype, device=torch_device(device), decoder_only=True)
        single, whole = (Bench.of(model, ids, rounder) for ids in (inputs.ids, inputs.held_out))
        return cls(single, whole if share == 1 else StandIn(whole, share), LossUnit.KL, share)

    def smooth_and_scale(self, problem: Problem, losses: Losses) -> Losses:
        """Return the losses to choose by: KL smoothed, output errors unchanged since they have no noise; by share."""
        smooth = smooth_losses(problem, losses) if self.unit is LossUnit.KL else losses
        return scale_losses(smooth, problem.free, self.share)


def choose_unit(memory: MemoryUse, target: Target, problem: Problem, dtype: DTypeName, device: str) -> LossUnit:
    """Return the unit of losses. KL runs the decoder for each change, so it needs the decoder in memory.

    Raises:
        EnvironmentFault: `memory` is resident and the decoder does not fit the free memory.
        UsageError: the target is a KL, but the decoder is not held in memory.
    """
    inventory = problem.plan.inventory
    weights = [weight for weight in inventory.weights if inventory.architecture.decoder_path(weight.name) is not None]
    need = DTYPES[dtype].itemsize * sum(weight.info.numel for weight in weights)
    if memory is not MemoryUse.STREAM and is_roomy(need, torch_device(device)):
        return LossUnit.KL
    why = f"its decoder takes {size(need)} in {dtype}, more than the free memory of {device}"
    remedy = "--dtype bfloat16 takes half, --device cuda that of a GPU"
    if memory is MemoryUse.RESIDENT:
        raise EnvironmentFault(f"--memory resident: {why}", hint=f"{remedy}; --memory stream measures output errors")
    if isinstance(target, Loss):
        why = "a model that is streamed is not run" if memory is MemoryUse.STREAM else why
        raise UsageError(
            f"{target.text}: {why}, so errors of outputs are measured, not KL",
            hint=f"--target-size or --target-bits; {remedy}; measured losses serve on any machine",
        )
    return LossUnit.OUTPUT_ERROR


_LEAST_LOSS: Final = 1e-12
"""Smallest loss, so that a loss of 0 has a logarithm."""


def smooth_losses(problem: Problem, losses: Losses) -> Losses:
    """Return the fitted losses, by part name and packing label."""
    groups: defaultdict[tuple[str, tuple[str, ...]], list[Part]] = defaultdict(list)
    for part in problem.free:
        for bits in dict.fromkeys(form.num_bits for form in part.forms if form is not None):
            labels = tuple(label_form(form) for form in part.forms if form is not None and form.num_bits == bits)
            groups[part.kind, labels].append(part)
    smooth: dict[str, dict[str, float]] = {part.name: {} for part in problem.free}
    for (_, labels), parts in groups.items():
        for part, row in zip(
            parts, _fit_factors([[losses[part.name][label] for label in labels] for part in parts]), strict=True
        ):
            smooth[part.name] |= dict(zip(labels, row, strict=True))
    return smooth


def _fit_factors(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """Fit losses [parts, packings] as part factor x packing factor, by least squares of the logarithms."""
    logs = np.log(np.maximum(np.array(losses), _LEAST_LOSS))
    fitted: list[list[float]] = np.exp(logs.mean(1, keepdims=True) + logs.mean(0) - logs.mean()).tolist()
    return fitted
