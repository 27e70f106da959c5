"""Outlook of a plan: the verdicts of all engines, and the gate of a recipe's `engines`."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from g4convert.engines import CONTRACTS
from g4convert.engines.advice import raise_if_refused, with_remedies
from g4convert.engines.verdicts import Loads, Verdict, select_verdicts, verdicts
from g4convert.engines.weights import Weights
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import Recipe
from g4convert.planning.weights import make_planned_weights


@dataclass(frozen=True, slots=True)
class Outlook:
    """The output of a plan as engines will load it, and their verdicts; derived once per command.

    Args:
        weights: weights of the output, with the lists of its config.
        verdicts: verdict of every engine at every tensor parallel size that the command asks about.
    """

    weights: Weights
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, plan: Plan, tps: Iterable[int]) -> "Outlook":
        """Judge a plan.

        Raises:
            GateError: no list of entries describes what is packed.
        """
        weights = make_planned_weights(plan)
        return cls(weights, verdicts(weights, tps=tps))

    def with_remedies(self) -> "Outlook":
        """Return the outlook with advice in each refusal on making the engine load the output."""
        return replace(self, verdicts=with_remedies(self.weights, self.verdicts))

    def at(self, tps: Iterable[int]) -> tuple[Verdict, ...]:
        """Return the verdicts of every engine at the given tensor parallel sizes."""
        return select_verdicts(self.verdicts, CONTRACTS, tps)

    def refusing(self, tps: Iterable[int]) -> tuple[Verdict, ...]:
        """Return the verdicts of all engines that cannot load the output, named by the recipe or not."""
        return tuple(verdict for verdict in self.at(tps) if verdict.loads is Loads.NO)

    def require_engines(self, recipe: Recipe, tps: Collection[int]) -> None:
        """Check that every engine that the recipe names can load the output.

        Args:
            recipe: recipe that names the engines.
            tps: tensor parallel sizes at which they must load it; all must have been judged.

        Raises:
            GateError: an engine of the recipe cannot load the output.
        """
        engines = tuple(engine.value for engine in recipe.engines)
        raise_if_refused(self.weights, self.verdicts, engines, tps)
