"""Outlook of a plan: the verdicts of all engines, and the gate of a recipe's `engines`."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from g4convert.engines import CONTRACTS
from g4convert.engines.advice import advised, refuse
from g4convert.engines.verdicts import Loads, Verdict, chosen, verdicts
from g4convert.engines.weights import Weights
from g4convert.planning.recipe import Recipe
from g4convert.planning.steps import Plan
from g4convert.planning.weights import planned_weights

__all__ = ["Outlook"]


@dataclass(frozen=True, slots=True)
class Outlook:
    """The output of a plan, as engines will meet it, and what each will make of it: derived once for a command.

    Args:
        weights: the output, with the lists of its config.
        verdicts: verdicts of every engine, on every number of GPUs that the command asks about.
    """

    weights: Weights
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, plan: Plan, tps: Iterable[int]) -> "Outlook":
        """Judge a plan.

        Args:
            plan: plan of the output.
            tps: tensor parallel sizes to judge.

        Raises:
            GateError: no list of entries describes what is packed.
        """
        weights = planned_weights(plan)
        return cls(weights, verdicts(weights, tps=tps))

    def advised(self) -> "Outlook":
        """Return the outlook with what would make engines that refuse the output load it."""
        return replace(self, verdicts=advised(self.weights, self.verdicts))

    def at(self, tps: Iterable[int]) -> tuple[Verdict, ...]:
        """The verdicts of every engine at some of the sizes."""
        return chosen(self.verdicts, CONTRACTS, tps)

    def refusing(self, tps: Iterable[int]) -> tuple[Verdict, ...]:
        """The verdicts of engines that cannot load the output, whatever engines a recipe names."""
        return tuple(one for one in self.at(tps) if one.loads is Loads.NO)

    def hold(self, recipe: Recipe, tps: Collection[int]) -> None:
        """Hold the output against the engines that a recipe names.

        Args:
            recipe: with the engines.
            tps: the tensor parallel sizes that it must load at; among those that were judged.

        Raises:
            GateError: one of the engines cannot load it.
        """
        engines = tuple(engine.value for engine in recipe.engines)
        refuse(self.weights, self.verdicts, engines, tps)
