"""Packings that the recipe's engines do not load, removed before any measurement.

For each packing, one plan packs every part that allows it. If an engine refuses that plan, one plan for each kind of
part packs only this kind and keeps the rest; a refused plan removes the packing from the kind.
"""

from collections.abc import Collection, Iterable

from g4convert.checkpoint.directory import Checkpoint
from g4convert.errors import GateError
from g4convert.fitting.choices import Form
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Problem
from g4convert.fitting.writing import plan_of, recipe_values
from g4convert.planning.gate import Outlook

__all__ = ["loadable"]


def loadable(problem: Problem, checkpoint: Checkpoint, tps: Collection[int]) -> Problem:
    """Return the problem with only the packings that its recipe's engines load at every tensor parallel size.

    Args:
        problem: the problem; it is returned unchanged if its recipe names no engines.
        checkpoint: the source.
        tps: tensor parallel sizes.

    Raises:
        GateError: a part has no allowed packing left.
    """
    refused: dict[str, list[Form]] = {}
    choices = dict.fromkeys(form for part in problem.free for form in part.forms)
    for form in choices if problem.plan.recipe.engines else ():
        having = [part for part in problem.free if form in part.forms]
        if form is None or _loads(problem, checkpoint, having, form, tps):
            continue
        for kind in dict.fromkeys(part.kind for part in having):
            alike = [part for part in having if part.kind == kind]
            if not _loads(problem, checkpoint, alike, form, tps):
                refused.setdefault(kind, []).append(form)
    return problem.without(refused)


def _loads(problem: Problem, checkpoint: Checkpoint, parts: Iterable[Part], form: Form, tps: Collection[int]) -> bool:
    """Return whether all engines load an output with `parts` packed and all other free parts kept."""
    assignment = {part.name: None if part.is_free else part.base for part in problem.parts}
    assignment |= {part.name: form for part in parts}
    plan = plan_of(checkpoint, recipe_values(problem, assignment), problem, assignment)
    try:
        Outlook.of(plan, tps).hold(plan.recipe, tps)
    except GateError:
        return False
    return True
