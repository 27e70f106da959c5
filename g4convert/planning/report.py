"""The report of `g4convert plan`: the plan of a source in numbers, as text or JSON."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from g4convert.checkpoint.declared import DeclaredGroup
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.source import Source
from g4convert.engines.verdicts import TENSOR_PARALLEL, Verdict
from g4convert.planning.costs import BUNDLED_TOKENS, MethodCost, estimate_costs
from g4convert.planning.gate import Outlook
from g4convert.planning.layout import Layout, lay_out
from g4convert.planning.plan import Copy, Drop, Plan, Quantize
from g4convert.planning.recipe_files import ResolvedRecipe
from g4convert.planning.sizes import RoleSize, add_up_sizes, default_workers, describe_packing
from g4convert.planning.steps import make_plan


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan, its layout, costs and verdicts.

    `costs` begins with the recipe's method; `outlook` has the verdicts of `tps`, perhaps of other sizes, too.
    `own_texts` tells whether the token ids that `costs` count are of the user's texts.
    """

    source: Source
    recipe: ResolvedRecipe
    plan: Plan
    layout: Layout
    sizes: tuple[RoleSize, ...]
    costs: tuple[MethodCost, ...]
    workers: int
    outlook: Outlook
    tps: tuple[int, ...]
    own_texts: bool

    @classmethod
    def of(  # noqa: PLR0913 - a plan and what its estimates need
        cls,
        source: Source,
        recipe: ResolvedRecipe,
        plan: Plan,
        layout: Layout,
        outlook: Outlook,
        *,
        workers: int = 0,
        tps: Iterable[int] = TENSOR_PARALLEL,
        tokens: int = BUNDLED_TOKENS,
        own_texts: bool = False,
    ) -> "PlanReport":
        """Make the report that follows from a plan.

        Args:
            source: the checkpoint.
            recipe: recipe of the output.
            plan: every step.
            layout: the place of every byte.
            outlook: verdicts of the engines on the output, at `tps` at least.
            workers: for the estimated time; 0 is one for each core.
            tps: tensor parallel sizes to report.
            tokens: token ids that would calibrate.
            own_texts: whether they are of the user's texts.
        """
        sizes, workers = add_up_sizes(plan), workers or default_workers()
        method_costs = estimate_costs(plan, sizes, workers, tokens)
        return cls(source, recipe, plan, layout, sizes, method_costs, workers, outlook, tuple(tps), own_texts)

    def __repr__(self) -> str:
        """Return the model, the recipe and the sizes, as all fields would fill pages."""
        return f"PlanReport({self.source.name!r}, recipe={self.recipe.name!r}, output_bytes={self.output_bytes:,})"

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Verdict of each engine on the output, in the order of `tps`."""
        return self.outlook.at(self.tps)

    @property
    def packed_as(self) -> str:
        """Describe how weights are packed, for people."""
        return describe_packing(self.plan)

    @property
    def groups(self) -> tuple[DeclaredGroup, ...]:
        """The config groups of the output."""
        return tuple({group.name: group for group in self.outlook.weights.groups.values()}.values())

    @property
    def output_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.size for shard in self.layout.shards)

    @property
    def kept(self) -> dict[tuple[str, str], int]:
        """Number of tensors that stay as they are, by role and reason."""
        return _count((copy.role.value, copy.reason) for copy in self.plan.copied)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of source tensors left out, by reason."""
        return _count(drop.reason for drop in self.plan.dropped)

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """Return the report as JSON; with `tensors`, every step as well."""
        weights = self.outlook.weights
        document: dict[str, Any] = {
            "schema_version": 1,
            "model": self.source.name,
            "revision": self.source.revision,
            "family": self.plan.architecture.family,
            "model_type": self.plan.architecture.model_type,
            "dialects": [asdict(use) for use in self.plan.inventory.dialects],
            "recipe": {"name": self.recipe.name, **self.recipe.settings()},
            "roles": [{**asdict(size), "bits_per_weight": round(size.bits_per_weight, 4)} for size in self.sizes],
            "kept": [{"role": role, "reason": why, "tensors": n} for (role, why), n in self.kept.items()],
            "dropped": [{"reason": why, "tensors": n} for why, n in self.dropped.items()],
            "targets": [*(weights.targets or ())],
            "config_groups": [
                {"num_bits": group.num_bits, "group_size": group.group_size, "targets": [*group.targets]}
                for group in self.groups
            ],
            "ignore": [*weights.ignore],
            "output": {
                "bytes": self.output_bytes,
                "files": len(self.layout.shards),
                "tensors": len(self.layout.placed),
            },
            "files": {
                "carried": [*self.plan.beside.side],
                "left": [{"name": name, "reason": why} for name, why in self.plan.beside.left],
                "decided": [asdict(choice) for choice in self.plan.beside.decided],
            },
            "estimate": {"seconds": round(self.costs[0].seconds, 1), "workers": self.workers},
            "methods": [{**asdict(cost), "seconds": round(cost.seconds, 1)} for cost in self.costs],
            "engines": [verdict.to_dict() for verdict in self.verdicts],
            "warnings": list(self.plan.warnings),
        }
        if tensors:
            document["tensors"] = [_step_to_dict(step) for step in self.plan.steps]
        return document


def report_plan(
    source: Source,
    recipe: ResolvedRecipe,
    workers: int = 0,
    tps: Iterable[int] = TENSOR_PARALLEL,
    tokens_of: Callable[[Checkpoint], int] = lambda _: BUNDLED_TOKENS,
) -> PlanReport:
    """Plan a source.

    Args:
        source: the checkpoint.
        recipe: recipe of the output.
        workers: for the estimated time; 0 is one for each core.
        tps: tensor parallel sizes to judge.
        tokens_of: counts the token ids that would calibrate a checkpoint.

    Raises:
        G4Error: whatever is wrong with the source or the recipe.
    """
    checkpoint = Checkpoint.open(source.path).choosing(carry=recipe.recipe.carry, leave=recipe.recipe.leave)
    plan, sizes = make_plan(checkpoint, recipe.recipe), tuple(tps)
    outlook = Outlook.of(plan, sizes).with_remedies()
    tokens = tokens_of(checkpoint)
    return PlanReport.of(source, recipe, plan, lay_out(plan), outlook, workers=workers, tps=sizes, tokens=tokens)


def _count(items: Iterable[Any]) -> dict[Any, int]:
    counts: dict[Any, int] = defaultdict(int)
    for item in items:
        counts[item] += 1
    return dict(counts)


def _step_to_dict(step: Copy | Quantize | Drop) -> dict[str, Any]:
    match step:
        case Copy():
            return {"action": "keep", "name": step.target.name, "from": [s.source for s in step.segments]}
        case Quantize():
            names = [info.name for info in step.outputs]
            return {"action": "pack", "names": names, "from": [step.weight.segment.source]}
        case Drop():
            return {"action": "drop", "from": [step.source.name], "reason": step.reason}
