"""A conversion before it runs: the job, and every decision that `prepare` takes of it.

    open checkpoint -> plan -> calibration file -> verdicts of engines -> layout -> config, units -> output directory

What can be wrong with names, shapes, the recipe, the side files or the output directory is found here, before
anything is written, even if the output already exists. At most a sample of the weights is read, to compare it with the
model of the calibration file, or of an output that seems to be the same; such an output is read as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.conversion.apart import check_inputs, is_same
from g4convert.conversion.calibration import Calibration
from g4convert.conversion.finished import is_finished
from g4convert.conversion.side_files import check_side_files, planned_record
from g4convert.conversion.staging import Staging
from g4convert.conversion.statistics import Statistics
from g4convert.engines.verdicts import TENSOR_PARALLEL
from g4convert.errors import UnsupportedError, UsageError
from g4convert.places import expand_home
from g4convert.planning.config import make_output_config
from g4convert.planning.gate import Outlook
from g4convert.planning.layers import layer_steps
from g4convert.planning.layout import Layout, lay_out
from g4convert.planning.plan import Plan
from g4convert.planning.recipe_files import ResolvedRecipe
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
        calibration: the file that the user named for a method that needs one; None takes `own_calibration`.
    """

    source: Source
    recipe: ResolvedRecipe
    output: Path
    workers: int = 0
    device: str = "cpu"
    overwrite: bool = False
    tps: tuple[int, ...] = (1,)
    calibration: Path | None = None

    @property
    def own_calibration(self) -> Path:
        """Path of the output's own calibration file, beside the output."""
        named = self.output if self.output.name not in {"", ".."} else Staging.of(self.output).target
        return named.parent / f"{named.name}.calibration.safetensors"

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that are read beside the source: the calibration file that the user named, and those of the recipe."""
        recipe_files = map(expand_home, {self.recipe.name, *self.recipe.origins.values()})
        named_file = () if self.calibration is None else (self.calibration,)
        return (*named_file, *sorted(path for path in recipe_files if path.is_file()))

    def check_place(self, staging: Staging, checkpoint: Checkpoint, planned: Mapping[str, Any] | None = None) -> None:
        """Check that the output may be written, and that nothing that is read lies where the run writes or deletes.

        Args:
            staging: directories of the output.
            checkpoint: the source.
            planned: see `Staging.check`.

        Raises:
            UsageError: see `Staging.check` and `check_inputs`.
        """
        own_file = self.own_calibration
        beside = [own_file.with_name(f"{own_file.name}{end}") for end in (".partial", ".lock")]
        calibration = [own_file, *beside] if self.recipe.recipe.is_calibrated else []
        named_file = self.calibration
        places = [
            *staging.places,
            *(path for path in calibration if named_file is None or not is_same(path, named_file)),
        ]
        check_inputs(self.output, places, checkpoint, self.files)
        staging.check(overwrite=self.overwrite, planned=planned)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A job with every decision taken: plan, verdicts of engines, byte layout of the shards, units of work.

    `calibration` is None for a method that reads weights alone; its file may have yet to be made. If `already_done`,
    the output is there: of the same source, recipe, calibration file and version, with no file changed since.
    """

    job: Job
    staging: Staging
    checkpoint: Checkpoint
    plan: Plan
    outlook: Outlook
    layout: Layout
    config: Mapping[str, Any]
    units: tuple[Unit, ...]
    calibration: Calibration | None = None
    already_done: bool = False

    @property
    def statistics(self) -> Statistics | None:
        """Statistics by which `imatrix` weighs errors; None for other methods."""
        weighs = self.calibration is not None and not self.plan.recipe.is_layered
        return self.calibration.statistics if self.calibration and weighs else None

    @property
    def tiled(self) -> int:
        """Number of units quantized tile by tile; the units after them are whole layers."""
        return len(self.units) - len(layer_steps(self.plan))


def prepare(job: Job) -> Conversion:
    """Take every decision of a conversion; writes nothing and reads at most a sample of the source's weights.

    Raises:
        G4Error: the source, the recipe, the calibration file or the output directory cannot be used.
    """
    recipe = job.recipe.recipe
    checkpoint = Checkpoint.open(job.source.path).choosing(carry=recipe.carry, leave=recipe.leave)
    plan = make_plan(checkpoint, recipe)
    _check_method(job, plan)
    calibration = _find_calibration(job, plan, checkpoint)
    outlook = Outlook.of(plan, (*TENSOR_PARALLEL, *job.tps))
    outlook.require_engines(plan.recipe, job.tps)
    layout = lay_out(plan)
    check_side_files(checkpoint)
    staging = Staging.of(job.output)
    config, units = make_output_config(checkpoint.config, plan, outlook.weights), make_units(plan, layout, checkpoint)
    record = planned_record(staging.target, job.recipe, job.source, checkpoint)
    ids = calibration.hash if calibration else ""
    done = not job.overwrite and is_finished(staging, record, checkpoint, config, ids)
    if not done:
        job.check_place(staging, checkpoint, record)
    return Conversion(job, staging, checkpoint, plan, outlook, layout, config, units, calibration, done)


def _check_method(job: Job, plan: Plan) -> None:
    """Raise if a calibrated method cannot run on this model or device, or has nothing to do, or another has a file."""
    method, calibrated = job.recipe.recipe.method.value, plan.recipe.is_calibrated
    if not plan.quantized and (calibrated or job.calibration is not None):
        subject = f"method {method}" if job.calibration is None else "--calibration"
        hint = "--method mse" if job.calibration is None else "leave it out, with --method mse"
        raise UsageError(f"{subject}: nothing is packed, so there is nothing to calibrate", hint=hint)
    if calibrated and plan.architecture.is_assistant:
        raise UnsupportedError(f"method {method}: a drafter reads another model's states", hint="--method mse")
    if not calibrated and job.calibration is not None:
        raise UsageError(f"--calibration: method {method} looks at weights alone", hint="-r w4a16-g32-gptq uses it")
    if method == "best" and job.device != "cpu" and layer_steps(plan):
        raise UsageError(
            f"--device {job.device}: method {method} trains scales on the CPU", hint="--device cpu, or --method gptq"
        )


def _find_calibration(job: Job, plan: Plan, checkpoint: Checkpoint) -> Calibration | None:
    """Return the calibration file; None for a method that looks at weights alone.

    A file that the user named must be there; the output's own is made later.

    Raises:
        InputError: see `Calibration.of` and `Calibration.own`.
    """
    if not plan.recipe.is_calibrated:
        return None
    if job.calibration is not None:
        return Calibration.of(job.calibration, plan, checkpoint)
    return Calibration.own(job.own_calibration, plan, checkpoint, overwrite=job.overwrite)
