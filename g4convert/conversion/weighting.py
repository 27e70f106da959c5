"""Statistics of inputs laid over a plan: the weights that they weigh, and a check that they are of the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.statistics import FEW, Model, Statistics, source_of
from g4convert.errors import InputError
from g4convert.names import Name
from g4convert.planning.steps import Plan
from g4convert.quantization import Method, Scheme

__all__ = ["Weighting", "check_statistics"]

_HINT = "`g4convert quantize MODEL -o OUT -r w4a16-g32-imatrix` alone makes its own"


@dataclass(frozen=True, slots=True)
class Weighting:
    """Scheme and statistics of each packed weight.

    Args:
        scheme: of the recipe and the chosen method.
        paths: of the Linears in the decoder, by index into `plan.quantized`.
        statistics: what their inputs are; None for a method that looks at weights alone.
    """

    scheme: Scheme
    paths: Mapping[int, str]
    statistics: Statistics | None = None

    @classmethod
    def of(cls, plan: Plan, scheme: Scheme, statistics: Statistics | None) -> "Weighting":
        """Lay statistics over a plan."""
        return cls(scheme, {} if statistics is None else _paths(plan), statistics)

    def __call__(self, step: int) -> tuple[Scheme, NDArray[np.float32] | None]:
        """The scheme of a weight and E[x^2] of its inputs; outside of the decoder `imatrix` gives way to `mse`."""
        path = self.paths.get(step)
        if self.statistics is None or path is None:
            mse = self.scheme.method is Method.IMATRIX
            return (replace(self.scheme, method=Method.MSE) if mse else self.scheme), None
        return self.scheme, self.statistics.of(path)

    def report(self, plan: Plan) -> Mapping[str, Any] | None:
        """The statistics used, as JSON; None for a method that looks at weights alone."""
        if self.statistics is None:
            return None
        used, few = self.statistics, self.statistics.experts_with(FEW - 1)
        without = self.statistics.experts_with(0)
        return {
            "tokens": used.tokens,
            "samples": used.samples,
            "length": used.length,
            "statistics": used.hash,
            "weighted": len(self.paths),
            "data_free": [step.weight.module for i, step in enumerate(plan.quantized) if i not in self.paths],
            "experts_with_few_tokens": [name for name in few if name not in {*without}],
            "experts_without_tokens": without,
        }


def check_statistics(path: Path, statistics: Statistics, plan: Plan, checkpoint: Checkpoint) -> None:
    """Hold statistics against the model that they are to weigh.

    Raises:
        InputError: they are of another model or tokenizer, or lack inputs of a Linear that is packed.
    """
    if statistics.model is not None:
        wrong = [*statistics.model.differences(Model.of(checkpoint))]
        if wrong:
            raise InputError(f"{path}: statistics of another model: {', '.join(wrong)}", hint=_HINT)
    wrong = []
    for step, module in _paths(plan).items():
        width = plan.quantized[step].weight.shape[1]
        inputs, expert = statistics.inputs.get(source_of(module)), Name(module).expert
        if inputs is None:
            wrong.append(f"{module}: missing")
        elif inputs.mean_square.shape[-1] != width:
            wrong.append(f"{module}: {inputs.mean_square.shape[-1]} inputs, the model has {width}")
        elif (inputs.mean_square.ndim == 1) != (expert is None) or (expert or 0) >= len(inputs.tokens):
            wrong.append(f"{module}: of {len(inputs.tokens)} experts")
    if wrong:
        raise InputError(f"{path}: statistics do not fit the model", offenders=wrong, hint=_HINT)


def _paths(plan: Plan) -> Mapping[int, str]:
    """Packed Linears of the decoder, by index into `plan.quantized`: `layers.3.mlp.up_proj`."""
    prefix = plan.inventory.architecture.text_prefix
    return {
        number: step.weight.module.removeprefix(prefix)
        for number, step in enumerate(plan.quantized)
        if step.weight.module.startswith(prefix) and not step.weight.module.in_tower
    }
