"""Assigns input statistics to the packed weights of a plan, and checks that they belong to the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from g4convert.array_types import F32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.gguf import is_gguf
from g4convert.conversion.calibration_file import CalibrationFile, check_model
from g4convert.conversion.llama_imatrix import read_imatrix
from g4convert.conversion.result import MethodChoice
from g4convert.conversion.statistics import FEW, Statistics, source_of
from g4convert.errors import InputError
from g4convert.names import Name
from g4convert.planning.plan import Plan
from g4convert.quantization import Method, Scheme

_HINT = "`g4convert calibrate MODEL -o FILE` makes one of the model"


@dataclass(frozen=True, slots=True)
class Weighting:
    """Scheme and statistics of each packed weight.

    Args:
        schemes: scheme of each weight, in the order of `plan.quantized`.
        paths: paths of the decoder's Linears, by index into `plan.quantized`; empty without statistics.
        statistics: statistics of the Linears' inputs; None for a method that reads weights alone.
    """

    schemes: tuple[Scheme, ...]
    paths: Mapping[int, str]
    statistics: Statistics | None = None

    @classmethod
    def of(cls, plan: Plan, choice: MethodChoice, statistics: Statistics | None) -> "Weighting":
        """Return the weighting of a plan under the chosen method and statistics."""
        signed = plan.recipe.signed
        schemes = tuple(choice.scheme(step.packing, signed=signed) for step in plan.quantized)
        return cls(schemes, {} if statistics is None else _linear_paths(plan), statistics)

    def __call__(self, step: int) -> tuple[Scheme, F32 | None]:
        """Return a weight's scheme and E[x^2] of its inputs, [k]; outside the decoder `mse` replaces `imatrix`."""
        path, scheme = self.paths.get(step), self.schemes[step]
        if self.statistics is None or path is None:
            mse = scheme.method is Method.IMATRIX
            return (replace(scheme, method=Method.MSE) if mse else scheme), None
        return scheme, self.statistics.of(path)

    def report(self, plan: Plan) -> Mapping[str, Any] | None:
        """Return a report of the statistics as JSON; None for a method that reads weights alone."""
        if self.statistics is None:
            return None
        statistics, few = self.statistics, self.statistics.experts_with(FEW - 1)
        without, coverage = self.statistics.experts_with(0), self.statistics.coverage
        return {
            "origin": statistics.origin,
            "tokens": statistics.tokens,
            "samples": statistics.samples,
            "length": statistics.length,
            "kinds": dict(statistics.kinds),
            "statistics": statistics.hash,
            "weighted": len(self.paths),
            "data_free": [step.weight.module for i, step in enumerate(plan.quantized) if i not in self.paths],
            "experts_with_few_tokens": [name for name in few if name not in {*without}],
            "experts_without_tokens": without,
            "coverage": None if coverage is None else asdict(coverage),
        }


def read_statistics(path: Path) -> Statistics:
    """Read the statistics of a calibration file, or of llama.cpp's importance matrix.

    Raises:
        InputError: the file is neither of these, is damaged, or is a calibration file without statistics.
    """
    if is_gguf(path):
        return read_imatrix(path)
    statistics = CalibrationFile.load(path).statistics
    if statistics is None:
        raise InputError(f"{path}: token ids without statistics of the model's inputs", hint=_HINT)
    return statistics


def check_statistics(path: Path, statistics: Statistics, plan: Plan, checkpoint: Checkpoint) -> None:
    """Check that statistics fit the model.

    Raises:
        InputError: they belong to another model or tokenizer, have other shapes, or lack a packed Linear.
    """
    check_model(path, statistics.model, checkpoint)
    experts = plan.architecture.text.experts
    wrong = {}
    for step, path_in in _linear_paths(plan).items():
        k, module = plan.quantized[step].weight.shape[1], source_of(path_in)
        shape = (k,) if Name(path_in).expert is None or experts is None else (experts.count, k)
        inputs = statistics.inputs.get(module)
        if inputs is None:
            wrong[module] = f"{module}: missing"
        elif inputs.mean_square.shape != shape:
            wrong[module] = f"{module}: {[*inputs.mean_square.shape]}, expected {[*shape]}"
    if wrong:
        raise InputError(f"{path}: statistics do not fit the model", offenders=wrong.values(), hint=_HINT)


def _linear_paths(plan: Plan) -> Mapping[int, str]:
    """Return the paths of the decoder's packed Linears (`layers.3.mlp.up_proj`), by index into `plan.quantized`."""
    linears = ((number, step.weight.module) for number, step in enumerate(plan.quantized) if step.weight.linear)
    paths = ((number, plan.inventory.architecture.decoder_path(module)) for number, module in linears)
    return {number: path for number, path in paths if path is not None}
