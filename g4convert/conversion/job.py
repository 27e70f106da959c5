"""A conversion before it runs: the job, and every decision that `prepare` takes of it.

    open checkpoint -> plan -> statistics -> verdicts of engines -> layout -> config, units

What can be wrong with names, shapes, the recipe, the side files or the output directory is found here, before
anything is written. Of the weights at most a sample is read, to compare it with the model of the statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.side_files import check_side_files, recipe_entry
from g4convert.conversion.staging import Staging
from g4convert.conversion.statistics import Statistics
from g4convert.conversion.weighting import check_statistics, read_statistics
from g4convert.engines.verdicts import TENSOR_PARALLEL
from g4convert.errors import UnsupportedError, UsageError
from g4convert.planning.config import output_config
from g4convert.planning.gate import Outlook
from g4convert.planning.layers import layer_steps
from g4convert.planning.layout import Layout, lay_out
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import Resolved
from g4convert.planning.steps import make_plan
from g4convert.planning.units import Unit, make_units


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion to run.

    Args:
        source: the checkpoint, resolved to a directory.
        recipe: recipe of the output.
        output: directory to write.
        workers: threads, or 0 for one for each core (or GPU).
        device: `cpu`, `cuda` or `cuda:N`.
        overwrite: replace a non-empty output; delete an OUT.partial of another conversion and start again.
        tps: tensor parallel sizes at which the recipe's engines must load the output.
        calibration: the file of token ids for a method that needs them.
    """

    source: Source
    recipe: Resolved
    output: Path
    workers: int = 0
    device: str = "cpu"
    overwrite: bool = False
    tps: tuple[int, ...] = (1,)
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """A job with every decision taken: plan, verdicts of engines, byte layout of the shards, units of work."""

    job: Job
    staging: Staging
    checkpoint: Checkpoint
    plan: Plan
    outlook: Outlook
    layout: Layout
    config: Mapping[str, Any]
    units: tuple[Unit, ...]
    statistics: Statistics | None = None

    @property
    def tiled(self) -> int:
        """Number of units quantized tile by tile; the units after them are whole layers."""
        return len(self.units) - len(layer_steps(self.plan))


def prepare(job: Job) -> Conversion:
    """Take every decision of a conversion; writes nothing and reads at most a sample of the weights.

    Raises:
        G4Error: the source, the recipe or the output directory cannot be used.
    """
    recipe = job.recipe.recipe
    checkpoint = Checkpoint.open(job.source.path).choosing(carry=recipe.carry, leave=recipe.leave)
    plan = make_plan(checkpoint, recipe)
    _check_calibration(job, plan)
    statistics = _statistics(job, plan, checkpoint)
    outlook = Outlook.of(plan, (*TENSOR_PARALLEL, *job.tps))
    outlook.hold(plan.recipe, job.tps)
    layout = lay_out(plan)
    check_side_files(checkpoint)
    staging = Staging.of(job.output)
    staging.check(job.source.path, overwrite=job.overwrite, recipe=recipe_entry(job.recipe))
    config, units = output_config(checkpoint.config, plan, outlook.weights), make_units(plan, layout, checkpoint)
    return Conversion(job, staging, checkpoint, plan, outlook, layout, config, units, statistics)


def _check_calibration(job: Job, plan: Plan) -> None:
    """Raise if a calibrated method lacks its file or cannot run on this model or device, or another method has one."""
    method, layered = job.recipe.recipe.method.value, bool(layer_steps(plan))
    calibrated = plan.recipe.is_calibrated and bool(plan.quantized)
    if calibrated and plan.architecture.is_assistant:
        raise UnsupportedError(f"method {method}: a drafter reads another model's states", hint="--method mse")
    if calibrated and job.calibration is None:
        raise UsageError(f"method {method} needs token ids to calibrate on", hint="--calibration FILE")
    if not calibrated and job.calibration is not None:
        raise UsageError(f"--calibration: method {method} looks at weights alone", hint="-r w4a16-g32-gptq uses it")
    if layered and method == "best" and job.device != "cpu":
        raise UsageError(
            f"--device {job.device}: method {method} trains scales on the CPU", hint="--device cpu, or --method gptq"
        )


def _statistics(job: Job, plan: Plan, checkpoint: Checkpoint) -> Statistics | None:
    """Return the statistics by which `imatrix` weighs errors; None for other methods or if the file does not exist.

    Raises:
        InputError: see `read_statistics` and `check_statistics`.
    """
    if plan.recipe.method != "imatrix" or job.calibration is None or not job.calibration.is_file():
        return None
    found = read_statistics(job.calibration)
    check_statistics(job.calibration, found, plan, checkpoint)
    return found
