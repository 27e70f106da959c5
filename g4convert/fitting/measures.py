"""Measures of losses, as the memory allows: KL where it holds the decoder, errors of outputs where it does not."""

from dataclasses import dataclass

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import is_roomy, torch_device
from g4convert.errors import EnvironmentFault, UsageError
from g4convert.fitting.bench import Bench
from g4convert.fitting.inputs import Inputs
from g4convert.fitting.outputs import Outputs
from g4convert.fitting.problem import Losses, Problem
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import Measure, Sensitivities, Unit
from g4convert.fitting.smoothing import smoothed
from g4convert.fitting.target import Loss, Target
from g4convert.forward.load import DTypeName, load
from g4convert.quantities import size
from g4convert.request import MemoryUse

__all__ = ["Measures", "unit_of"]

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Measures:
    """The two measures of a fit.

    Args:
        single: single changes.
        whole: choices as a whole, on other texts if texts are run.
        unit: what losses are.
    """

    single: Measure
    whole: Measure
    unit: Unit

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 -- a model, how it is rounded, on what, and how it runs
        cls,
        checkpoint: Checkpoint,
        rounder: Rounder,
        given: Inputs,
        known: Sensitivities,
        dtype: DTypeName,
        device: str,
    ) -> "Measures":
        """Load the model, if that is what known losses are of."""
        if known.basis.unit is Unit.OUTPUT_ERROR:
            both = Outputs(checkpoint, rounder, given.ids, known.losses)
            return cls(both, both, Unit.OUTPUT_ERROR)
        model = load(checkpoint, dtype=dtype, device=torch_device(device), decoder_only=True)
        return cls(Bench.of(model, given.ids, rounder), Bench.of(model, given.held_out, rounder), Unit.KL)

    def chosen_by(self, problem: Problem, losses: Losses) -> Losses:
        """Measured losses without noise; errors of outputs have none."""
        return smoothed(problem, losses) if self.unit is Unit.KL else losses


def unit_of(memory: MemoryUse, target: Target, problem: Problem, dtype: DTypeName, device: str) -> Unit:
    """The unit of losses: for KL each change runs the decoder from where it differs, so the memory has to hold it.

    Raises:
        EnvironmentFault: the model is to be resident, and too large.
        UsageError: a KL is asked for of a model that does not run.
    """
    prefix = problem.plan.inventory.architecture.text_prefix
    weights = [one for one in problem.plan.inventory.weights if one.name.startswith(prefix)]
    need = _ITEMSIZE[dtype] * sum(one.info.numel for one in weights)
    if memory is not MemoryUse.STREAM and is_roomy(need, torch_device(device)):
        return Unit.KL
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
    return Unit.OUTPUT_ERROR
