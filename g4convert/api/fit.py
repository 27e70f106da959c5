"""`g4convert.fit`: a recipe with the bits for each part of a model with which a size loses least."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeAlias, Unpack

from g4convert.api.calibrate import bundled_ids, calibrate
from g4convert.api.own_calibration import count
from g4convert.api.recipes import Overrides, RecipeLike, resolved
from g4convert.checkpoint import source
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.calibration import Calibration
from g4convert.conversion.fingerprint import check_unchanged
from g4convert.conversion.method import choose
from g4convert.devices import memory_faults
from g4convert.errors import InputError, Interrupted, UsageError
from g4convert.fitting.choices import DEFAULT_CHOICES, parse_choices
from g4convert.fitting.choosing import choose_for, presets
from g4convert.fitting.inputs import Inputs, rows_to_run
from g4convert.fitting.measures import Measures, unit_of
from g4convert.fitting.plot import plot as drawn
from g4convert.fitting.problem import Assignment, Problem
from g4convert.fitting.result import Fitted, chosen_for
from g4convert.fitting.rounding import Rounder
from g4convert.fitting.sensitivities import LossUnit, Sensitivities, measure
from g4convert.fitting.target import Loss, Target, budget, target_of
from g4convert.fitting.writing import loadable, plan_of, recipe_text, recipe_values
from g4convert.places import already_exists, check_apart
from g4convert.planning.gate import Outlook
from g4convert.planning.packings import LATTICE_BITS
from g4convert.planning.recipe import DEFAULT
from g4convert.planning.sizes import default_workers
from g4convert.planning.steps import make_plan
from g4convert.progress import Progress, saying
from g4convert.quantization import Method
from g4convert.request import DEFAULTS, MemoryUse, check_run, parse_choice
from g4convert.whole_files import check_writable, write_whole

_Path: TypeAlias = str | os.PathLike[str]
_BEGINNING = 4_096
"""Characters of a recipe that hold its first comments."""


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
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **overrides: Unpack[Overrides],
) -> Fitted:
    """Choose bits for each part of a model, and write a recipe that says them. Stopped, the same call continues.

    A recipe that is there is kept if the same call made it: the choice is made again from the kept losses to tell.

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
        **overrides: values of the recipe, as `group_size=64`.

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
    check_run(tp=tp, workers=workers, device=device, memory=memory, dtype=dtype)
    target = target_of(None if target_size is None else str(target_size), target_bits, max_kl)
    watch, tps = saying(progress, say), tuple(tp) or (1,)
    _check_output(Path(output), target, overwrite=overwrite)
    files = _Files.of(Path(output), calibration, sensitivities, plot)
    is_kept = files.recipe.is_file() and not overwrite
    files.check_writable(is_kept=is_kept)
    base, forms = resolved(recipe, overrides), parse_choices(choices)
    if tp and not base.recipe.engines:
        raise UsageError("--tp: no engine has to load the result", hint="name one: --engine vllm")
    directory = source.resolve(os.fspath(model)).path
    files.check_apart(directory, Path(base.name))
    checkpoint = Checkpoint.open(directory)
    problem = loadable(Problem.of(make_plan(checkpoint, base.recipe), forms), checkpoint, tps)
    if not isinstance(target, Loss):
        budget(target, problem)
    unit = unit_of(parse_choice("--memory", memory, MemoryUse) or DEFAULTS.memory, target, problem, dtype, device)
    if unit is LossUnit.OUTPUT_ERROR:
        watch.say("losses: errors of each part's outputs; the model is not run, so what they are in KL is not known")
    ids = None if files.is_given else Calibration.own(files.ids, problem.plan, checkpoint, overwrite=overwrite)
    weighs = base.recipe.is_calibrated or unit is LossUnit.OUTPUT_ERROR
    if ids is not None and not ids.is_there:
        rows_to_run(bundled_ids(directory), rows, tokens, files.ids)  # refused before the file is made, for minutes
        watch.say(f"calibration: of the bundled texts, kept in {files.ids}")
        calibrate(directory, files.ids, answers=False, statistics=weighs, overwrite=overwrite, progress=watch)
    elif ids is not None and ids.statistics is None and weighs:
        count(files.ids, files.ids, problem.plan, checkpoint, device="cpu", workers=0, progress=watch)
    given = Inputs.of(files.ids, checkpoint, problem, unit, rows, tokens)
    with (
        memory_faults(),
        _kept(files.losses),
        Reader(checkpoint.path, checkpoint.weight_files) as reader,
        _rounder(checkpoint, problem, given, workers) as rounder,
    ):
        check = partial(check_unchanged, checkpoint, reader)
        known = Sensitivities.at(files.losses, given.basis(checkpoint, rounder, unit, dtype))
        by = Measures.of(checkpoint, rounder, given, known, dtype, device)
        measure(problem, by.single, known, files.losses, watch, check)
        losses = by.chosen_by(problem, known.losses)
        solved = problem.frontier(losses)
        shown = tuple(presets(problem, checkpoint, by.whole))
        tried = choose_for(target, solved, by.whole, shown)
        taken = tried[-1].assignment
        values = recipe_values(problem, taken) | _said(rounder.method, taken)
        plan = plan_of(checkpoint, values, problem, taken)
        Outlook.of(plan, tps).require_engines(plan.recipe, tps)
        check()
    corners, (path, kept) = tuple(solved.drawn()), (files.recipe, files.losses)
    found = Fitted(path, kept, problem, known, losses, by.share, tried, shown, corners, already_done=is_kept)
    name = Path(os.fspath(model)).name
    files.write(
        recipe_text(values, found.comments(target)),
        drawn(f"{name}: size and {unit}", unit, corners, shown, tried),
        is_kept=is_kept,
        overwrite=overwrite,
    )
    return found


@dataclass(frozen=True, slots=True)
class _Files:
    """Files of a fit.

    Args:
        recipe: the output.
        losses: the measured losses, read and written.
        plot: the plot, if one is drawn.
        ids: token ids to run.
        is_given: whether the ids are a file of the caller's; else they are made where they are not there.
    """

    recipe: Path
    losses: Path
    plot: Path | None
    ids: Path
    is_given: bool

    @classmethod
    def of(cls, recipe: Path, ids: _Path | None, losses: _Path | None, plot: _Path | None) -> Self:
        """Return the files, those that were not named beside the recipe."""
        return cls(
            recipe,
            Path(losses) if losses else recipe.with_suffix(".sensitivities.json"),
            None if plot is None else Path(plot),
            Path(ids) if ids else recipe.with_name(f"{recipe.stem}.calibration.safetensors"),
            bool(ids),
        )

    @property
    def written(self) -> list[Path]:
        """The results."""
        return [self.recipe, self.losses, *([] if self.plot is None else [self.plot])]

    def check_writable(self, *, is_kept: bool) -> None:
        """Raise if what the fit writes cannot be written: if the recipe is kept, the plot and what is not there."""
        for one in self.written if self.is_given else [*self.written, self.ids]:
            if one == self.plot or not (is_kept and one.exists()):
                check_writable(one)

    def check_apart(self, model: Path, recipe: Path) -> None:
        """Raise if a result would replace something that the fit reads, or the caller's ids are not there."""
        check_apart(self.written, [model, self.ids, recipe])
        if self.is_given and not self.ids.exists():
            raise InputError(f"{self.ids}: no such file", hint="`g4convert calibrate MODEL -o FILE` makes one")

    def write(self, recipe: str, plot: str, *, is_kept: bool, overwrite: bool) -> None:
        """Write the plot, and the recipe last: one that is there is a fit that ended, and is kept if it is the same."""
        if is_kept and self.recipe.read_text(encoding="utf-8") != recipe:
            raise already_exists(self.recipe, "of the same target, by other options or on other texts")
        if self.plot is not None:
            write_whole(self.plot, plot)
        if not is_kept:
            write_whole(self.recipe, recipe, overwrite=overwrite)


@contextmanager
def _rounder(checkpoint: Checkpoint, problem: Problem, given: Inputs, workers: int) -> Iterator[Rounder]:
    """Yield the rounder of the method, with its threads open."""
    plan = problem.plan
    with Reader(checkpoint.path, checkpoint.weight_files) as reader:
        choice = choose(plan, checkpoint, reader)
    with ThreadPoolExecutor(workers or default_workers(), "fit") as pool:
        yield Rounder(choice, plan.inventory.architecture, pool, plan.recipe.signed, given.statistics)


def _said(method: Method, taken: Assignment) -> dict[str, str]:
    """The method, where `auto` would see less of a training's grid once parts differ in their groups."""
    four = any(form is not None and form.num_bits == LATTICE_BITS for form in taken.values())
    return {"method": method.value} if method is Method.LATTICE and four else {}


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Turn Ctrl-C into an error that says where the measured losses are.

    Args:
        path: file of measured losses, written after each one.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        hint = f"the same command continues{f': measured losses are in {path}' if path.exists() else ''}"
        raise Interrupted("stopped; no recipe was written", hint=hint) from error


def _check_output(path: Path, target: Target, *, overwrite: bool) -> None:
    """Raise if the recipe has another ending, or is there and was not chosen for the same target."""
    if path.is_dir():
        raise UsageError(f"{path}: a directory, and a recipe is a file", hint=f"-o {path / 'NAME.yaml'}")
    if path.suffix not in {".yaml", ".yml"}:
        raise UsageError(f"{path}: a recipe ends in .yaml or .yml", hint=f"-o {path.with_suffix('.yaml')}")
    if path.exists() and not overwrite and chosen_for(target) not in _beginning(path):
        raise already_exists(path, f"not c{chosen_for(target)[1:]}")


def _beginning(path: Path) -> str:
    """Return the first characters of a file; empty if it is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_BEGINNING)
    except (OSError, UnicodeDecodeError):
        return ""
