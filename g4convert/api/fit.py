"""`g4convert.fit`: a recipe with the bits for each part of a model with which a size loses least."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from g4convert.api.calibrate import calibrate, make_bundled_ids
from g4convert.api.fit_files import FitFiles, check_output
from g4convert.api.own_calibration import add_statistics
from g4convert.api.recipes import Overrides, RecipeLike, resolve_recipe
from g4convert.checkpoint import source
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.calibration import Calibration
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.method import choose
from g4convert.devices import memory_faults
from g4convert.errors import Interrupted, UsageError
from g4convert.fitting.choices import DEFAULT_CHOICES, parse_choices
from g4convert.fitting.choosing import choose_for, measure_presets
from g4convert.fitting.inputs import Inputs, choose_rows
from g4convert.fitting.measures import Measures, choose_unit
from g4convert.fitting.plot import draw_plot
from g4convert.fitting.problem import Assignment, Problem
from g4convert.fitting.result import Fitted
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import LossUnit, Sensitivities, measure_missing
from g4convert.fitting.target import Loss, Target, check_budget, parse_target
from g4convert.fitting.writing import format_yaml, make_checked_plan, make_values, remove_refused
from g4convert.places import expand_home
from g4convert.planning.gate import Outlook
from g4convert.planning.packings import LATTICE_BITS
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.sizes import default_workers
from g4convert.planning.steps import make_plan
from g4convert.progress import Progress, with_messages_to
from g4convert.quantization import Method
from g4convert.request import DEFAULTS
from g4convert.run_options import DeviceLike, MemoryUse, check_run, device_name, dtype_name, parse_choice

if TYPE_CHECKING:
    import torch


def fit(  # noqa: PLR0913 -- the choices of a fit
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target_size: str | int | None = None,
    target_bits: float | None = None,
    max_kl: float | None = None,
    recipe: RecipeLike = DEFAULT,
    choices: Sequence[str] = DEFAULT_CHOICES,
    calibration: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    tokens: int | None = None,
    sensitivities: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    tp: Sequence[int] = (),
    memory: str | None = None,
    dtype: "Literal['float32', 'bfloat16'] | torch.dtype" = "float32",
    device: DeviceLike = "cpu",
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **overrides: Unpack[Overrides],
) -> Fitted:
    """Choose bits for each part of a model, and write them as a recipe. After a stop, the same call continues.

    An existing recipe is kept if the same call made it: the choice is made again from the kept losses and compared.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        output: the .yaml file.
        target_size: bytes of all tensors, as a number or `14GB`; one of the three targets is given.
        target_bits: mean bits of the weights that are decided on, scales included.
        max_kl: largest mean KL to the original, in nats, on the token ids that are run.
        recipe: the recipe that says everything but the bits: which roles are decided on, the method, the engines.
        choices: packings that are tried, as `4:32`, `8:channel` and `16`.
        calibration: file of token ids; None takes one beside the output, which is made of the bundled texts if it is
            not there, or is of another model and `overwrite` is given.
        rows: number of its rows that single changes run, and of other rows that whole choices run; None takes 8, or
            half of what there is.
        tokens: tokens of each; None takes 64, or whole rows if they are shorter.
        sensitivities: file that keeps the measured losses; None takes one beside the output.
        plot: SVG file of size against KL; None draws none.
        tp: numbers of GPUs (tensor parallel sizes) at which the recipe's engines must load the output; empty is 1.
        memory: `resident` holds the decoder and measures KL; `stream` reads a weight at a time and measures output
            errors; `auto` measures KL if the decoder fits.
        dtype: dtype of the forward: `float32` or `bfloat16`.
        device: device of the forward: `cpu`, `cuda` or `cuda:N`.
        workers: threads that round; 0 is one for each core.
        overwrite: replace a recipe that is there.
        progress: told of measured changes; a subclass of `g4convert.progress.Progress`.
        say: told what is done next, in place of `progress.say`.
        **overrides: values of the recipe, as `group_size=64`: num_bits, group_size, method, signed, qat, pack, bits,
            rules, kv_shared, assistant, layout, max_shard_size, engines, carry, leave; docs/reference/recipes.md.

    Returns:
        The recipe, what was measured, and the points of the plot.

    Raises:
        UsageError: a number out of range, an unknown name, not one target, one that no choice meets, a KL of a model
            that does not run, an output that is there already, no such recipe or choice.
        InputError: no such model, or it changed meanwhile, or a file that is about another one.
        GateError: nothing that the recipe's engines load is left to choose, or no choice loses so little.
        EnvironmentFault: a model that is to be resident does not fit the memory, there is no such device,
            or another fit measures into the same file.
        Interrupted: stopped on request; measured losses are kept.
    """
    device, dtype = device_name(device), cast("Literal['float32', 'bfloat16']", dtype_name(dtype))
    check_run(tp=tp, workers=workers, device=device, memory=memory, dtype=dtype)
    target = parse_target(None if target_size is None else str(target_size), target_bits, max_kl)
    display, tps = with_messages_to(progress, say), tuple(tp) or (1,)
    check_output(expand_home(output), target, overwrite=overwrite)
    files = FitFiles.of(expand_home(output), calibration, sensitivities, plot)
    is_kept = files.recipe.is_file() and not overwrite
    files.check_writable(is_kept=is_kept)
    base, forms = resolve_recipe(recipe, overrides), parse_choices(choices)
    if tp and not base.recipe.engines:
        raise UsageError("--tp: no engine has to load the result", hint="name one: --engine vllm")
    directory = source.resolve(os.fspath(model)).path
    files.check_apart(directory, expand_home(base.name))
    checkpoint = Checkpoint.open(directory)
    problem = remove_refused(Problem.of(make_plan(checkpoint, base.recipe), forms), checkpoint, tps)
    if not isinstance(target, Loss):
        check_budget(target, problem)
    unit = choose_unit(parse_choice("--memory", memory, MemoryUse) or DEFAULTS.memory, target, problem, dtype, device)
    if unit is LossUnit.OUTPUT_ERROR:
        display.say("losses: errors of each part's outputs; the model is not run, so what they are in KL is not known")
    run = _Run(checkpoint, problem, target, unit, tps, files, rows, tokens, dtype, device, workers, display)
    if not files.is_given:
        run.make_calibration(overwrite=overwrite)
    fitted, values = run.measure_and_choose(already_done=is_kept)
    title = f"{Path(os.fspath(model)).name}: size and {unit}"
    files.write(
        format_yaml(values, fitted.comments(target)),
        draw_plot(title, unit, fitted.corners, fitted.presets, fitted.tried),
        is_kept=is_kept,
        overwrite=overwrite,
    )
    return fitted


@dataclass(frozen=True, slots=True)
class _Run:
    """A fit whose arguments were checked.

    Args:
        checkpoint: the model.
        problem: its parts and their allowed packings.
        target: the target of the choice.
        unit: unit of the losses.
        tps: tensor parallel sizes at which the recipe's engines must load the output.
        files: the files of the fit.
        rows: rows of token ids for single changes; None as in `choose_rows`.
        tokens: tokens of each row; None as in `choose_rows`.
        dtype: dtype of the forward.
        device: device of the forward.
        workers: threads that round; 0 is one for each core.
        progress: told of measured changes.
    """

    checkpoint: Checkpoint
    problem: Problem
    target: Target
    unit: LossUnit
    tps: tuple[int, ...]
    files: FitFiles
    rows: int | None
    tokens: int | None
    dtype: Literal["float32", "bfloat16"]
    device: str
    workers: int
    progress: Progress

    def make_calibration(self, *, overwrite: bool) -> None:
        """Make the file of token ids beside the recipe, or complete it: output errors need statistics, too."""
        plan, path = self.problem.plan, self.files.ids
        ids = Calibration.own(path, plan, self.checkpoint, overwrite=overwrite)
        needs_statistics = plan.recipe.is_calibrated or self.unit is LossUnit.OUTPUT_ERROR
        if not ids.is_there:
            bundled = make_bundled_ids(self.checkpoint.path)
            choose_rows(bundled, self.rows, self.tokens, path)  # refuses before minutes of work
            self.progress.say(f"calibration: of the bundled texts, kept in {path}")
            calibrate(
                self.checkpoint.path,
                path,
                answers=False,
                statistics=needs_statistics,
                overwrite=overwrite,
                progress=self.progress,
            )
        elif ids.statistics is None and needs_statistics:
            add_statistics(path, path, plan, self.checkpoint, device="cpu", workers=0, progress=self.progress)

    def measure_and_choose(self, *, already_done: bool) -> tuple[Fitted, dict[str, Any]]:
        """Measure the losses, choose for the target, and return the result and the values of its recipe."""
        checkpoint, problem, files = self.checkpoint, self.problem, self.files
        inputs = Inputs.of(files.ids, checkpoint, problem, self.unit, self.rows, self.tokens)
        with (
            memory_faults(),
            _report_stop(files.losses),
            Reader(checkpoint.path, checkpoint.weight_files) as reader,
            _open_rounder(checkpoint, problem, inputs, self.workers) as rounder,
        ):
            check = partial(check_unchanged, checkpoint, reader)
            sensitivities = Sensitivities.at(files.losses, inputs.basis(checkpoint, rounder, self.unit, self.dtype))
            measures = Measures.of(checkpoint, rounder, inputs, sensitivities, self.dtype, self.device)
            measure_missing(problem, measures.single, sensitivities, files.losses, self.progress, check)
            losses = measures.smooth_and_scale(problem, sensitivities.losses)
            frontier = problem.solve(losses)
            preset_points = tuple(measure_presets(problem, checkpoint, measures.whole))
            tried = choose_for(self.target, frontier, measures.whole, preset_points)
            values = self._make_values(tried[-1].assignment, rounder.method)
            check()
        fitted = Fitted(
            files.recipe,
            files.losses,
            problem,
            sensitivities,
            losses,
            measures.share,
            tried,
            preset_points,
            tuple(frontier.sample_corners()),
            already_done=already_done,
        )
        return fitted, values

    def _make_values(self, assignment: Assignment, method: Method) -> dict[str, Any]:
        """Return the values of the recipe for an assignment, whose output the recipe's engines load."""
        values = make_values(self.problem, assignment) | _explicit_method(method, assignment)
        plan = make_checked_plan(self.checkpoint, values, self.problem, assignment)
        Outlook.of(plan, self.tps).require_engines(plan.recipe, self.tps)
        return values


@contextmanager
def _open_rounder(checkpoint: Checkpoint, problem: Problem, inputs: Inputs, workers: int) -> Iterator[Rounder]:
    """Yield the rounder of the method, with its threads open."""
    plan = problem.plan
    with Reader(checkpoint.path, checkpoint.weight_files) as reader:
        choice = choose(plan, checkpoint, reader)
    with ThreadPoolExecutor(workers or default_workers(), "fit") as pool:
        yield Rounder(choice, plan.inventory.architecture, pool, plan.recipe.signed, inputs.statistics)


def _explicit_method(method: Method, assignment: Assignment) -> dict[str, str]:
    """Return the method for the recipe, where `auto` would see less of a training's grid as parts differ in groups."""
    has_four_bits = any(form is not None and form.num_bits == LATTICE_BITS for form in assignment.values())
    return {"method": method.value} if method is Method.LATTICE and has_four_bits else {}


@contextmanager
def _report_stop(path: Path) -> Iterator[None]:
    """Turn Ctrl-C into an error that names the file of measured losses.

    Args:
        path: file of measured losses, written after each one.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        where = f": measured losses are in {path}" if path.exists() else ""
        hint = f"the same command continues{where}"
        raise Interrupted("stopped; no recipe was written", hint=hint) from error
