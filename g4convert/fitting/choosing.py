"""The choice for a target: the best predicted choice is measured as a whole before it is taken.

Losses of single changes are noisy, and a choice prefers those that are low by chance. So whole choices are measured on
other texts. The best predicted choice is taken only if it beats one packing for all parts, and every shipped recipe
that could be chosen, by more than one standard error of the difference over the texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import GateError, InputError, UsageError
from g4convert.fitting.parts import find_parts
from g4convert.fitting.problem import Assignment, Problem, SolvedProblem
from g4convert.fitting.sensitivities import Measure
from g4convert.fitting.target import Loss, Target, check_budget
from g4convert.planning.layout import lay_out
from g4convert.planning.recipe import RecipeMethod
from g4convert.planning.recipe_files import load, load_shipped
from g4convert.planning.steps import make_plan
from g4convert.quantities import size

_MAX_TRIES: Final = 12
_MAX_GUESSES: Final = 4
"""Tries whose place is guessed from the try before; later tries bisect."""
_CLOSE_ENOUGH: Final = 0.95
"""Share of the allowed loss at which the search stops: the choice is close enough."""


@dataclass(frozen=True, slots=True)
class Point:
    """A way to pack the model, and its measured loss.

    Args:
        name: name of the preset or of the choice.
        nbytes: bytes of all tensors.
        losses: loss on each text, with all parts packed at once.
        predicted: sum of the losses of single changes; None for a preset that is no choice.
        assignment: packing of each part; for a preset, of the parts of its own plan.
    """

    name: str
    nbytes: int
    losses: tuple[float, ...]
    predicted: float | None
    assignment: Assignment

    @property
    def measured(self) -> float:
        """Mean loss over the texts."""
        return fmean(self.losses)

    def is_better(self, other: "Point") -> bool:
        """Return whether this point loses less than `other` by more than one standard error of the difference."""
        differences = [mine - theirs for mine, theirs in zip(self.losses, other.losses, strict=True)]
        return fmean(differences) < -(stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0)


def choose_for(
    target: Target, solved: SolvedProblem, measure: Measure, shipped_ones: Iterable[Point] = ()
) -> tuple[Point, ...]:
    """Measure choices for a target and return them, the choice to take last.

    Tries the best choice of the frontier and each packing on all parts at once, beside shipped recipes.

    Args:
        target: the target; a loss must hold as measured, so several choices of the frontier may be tried.
        solved: the frontier of predicted losses.
        measure: measures a whole choice, on other texts than single changes.
        shipped_ones: shipped recipes, measured; one that is a choice of the problem may be taken.

    Raises:
        GateError: no choice that packs anything is within the allowed loss.
    """
    others = [*_select_choosable(shipped_ones, solved)]
    if isinstance(target, Loss):
        *tries, last = _search_within_loss(target, solved, measure)
        simple = sorted(_measure_simple(last.nbytes, solved, measure, others), key=lambda point: -point.nbytes)
        smaller = [point for point in simple if point.nbytes < last.nbytes and point.measured <= target.kl]
        choice = min(smaller, key=lambda point: (point.nbytes, point.measured), default=last)
        return _put_last(choice, [*tries, *simple, last], others)
    nbytes = check_budget(target, solved.problem)
    best = _measure_point("best predicted", solved.within(nbytes), solved, measure)
    tried = sorted(_measure_simple(nbytes, solved, measure, others), key=lambda point: -point.measured)
    choice = best if not tried or best.is_better(tried[-1]) else tried[-1]
    return _put_last(choice, [*tried, best] if choice is best else [best, *tried], others)


def _put_last(choice: Point, tried: Iterable[Point], others: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that were tried, without other ones, and the one to take last."""
    return (*(point for point in tried if point is not choice and point not in others), choice)


def _measure_simple(nbytes: int, solved: SolvedProblem, measure: Measure, others: Iterable[Point]) -> Iterator[Point]:
    """Yield each packing on all parts at once, measured, and others that pack otherwise, if within `nbytes`."""
    uniform = dict(solved.problem.assign_uniformly())
    for name, assignment in uniform.items():
        if solved.problem.nbytes(assignment) <= nbytes:
            yield _measure_point(name, assignment, solved, measure)
    for point in others:
        if point.nbytes <= nbytes and point.assignment not in uniform.values():
            yield point


def _select_choosable(points: Iterable[Point], solved: SolvedProblem) -> Iterator[Point]:
    """Yield the points that are choices of the problem, with the sum of single changes."""
    parts = {part.name: part for part in solved.problem.parts}
    for point in points:
        is_whole = point.assignment.keys() == parts.keys() and point.nbytes == solved.problem.nbytes(point.assignment)
        if is_whole and all(form in parts[name].forms for name, form in point.assignment.items()):
            yield replace(point, predicted=solved.loss_of(point.assignment))


def _search_within_loss(target: Loss, solved: SolvedProblem, measure: Measure) -> tuple[Point, ...]:
    """Search the frontier for its smallest choice whose measured loss is within the target.

    The ratio of measured to predicted loss in one try places the next; after `_MAX_GUESSES` tries the search bisects.
    """
    losses = solved.losses
    tried: dict[int, Point] = {}
    low, high, ratio = -1, len(losses), 1.0
    while high - low > 1 and len(tried) < _MAX_TRIES:
        wanted = next((place for place, loss in enumerate(losses) if loss * ratio <= target.kl), len(losses) - 1)
        place = min(max(wanted, low + 1), high - 1) if len(tried) < _MAX_GUESSES else (low + high) // 2
        point = tried[place] = _measure_point(f"try {len(tried) + 1}", solved.corner(place), solved, measure)
        if point.measured > target.kl:
            low = place
        else:
            high = place
            if point.measured >= _CLOSE_ENOUGH * target.kl:
                break
        ratio = point.measured / point.predicted if point.predicted else ratio
    if high == len(losses) or not _is_packed(solved.problem, tried[high]):
        packed = [point for point in tried.values() if _is_packed(solved.problem, point)]
        least = min(packed, key=lambda point: point.measured, default=None)
        closest = (
            "" if least is None else f"; the least of those tried was {least.measured:.3g}, at {size(least.nbytes)}"
        )
        raise GateError(f"{target.text}: nothing can be packed and lose so little{closest}", hint="allow a larger loss")
    return (*(point for place, point in tried.items() if place != high), tried[high])


def _is_packed(problem: Problem, point: Point) -> bool:
    """Return whether a choice packs any free part."""
    return any(point.assignment[part.name] is not None for part in problem.free)


def _measure_point(name: str, assignment: Assignment, solved: SolvedProblem, measure: Measure) -> Point:
    problem = solved.problem
    losses = measure.losses((part, assignment[part.name]) for part in problem.parts)
    return Point(name, problem.nbytes(assignment), tuple(losses.tolist()), solved.loss_of(assignment), assignment)


def measure_presets(problem: Problem, checkpoint: Checkpoint, measure: Measure) -> Iterator[Point]:
    """Measure and yield the shipped recipes that fit the model, each assignment once, rounded by the fit's method.

    Args:
        problem: its recipe sets the layout and `kv_shared`.
        checkpoint: the source.
        measure: measures a whole choice.
    """
    own, seen = problem.plan.recipe, []
    fixed = {"layout": own.layout, "kv_shared": own.kv_shared}
    for name, recipe in load_shipped().items():
        if recipe.method is not RecipeMethod.AUTO or recipe.layout != "full":
            continue
        try:
            plan = make_plan(checkpoint, load(name, fixed).recipe)
        except (UsageError, InputError):  # a role that the model lacks, or groups that do not divide its rows
            continue
        parts = find_parts(plan)
        assignment = {part.name: part.base for part in parts}
        if assignment not in seen:
            seen.append(assignment)
            losses = measure.losses((part, part.base) for part in parts)
            yield Point(name, lay_out(plan).tensor_bytes, tuple(losses.tolist()), None, assignment)
