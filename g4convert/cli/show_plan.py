"""Printing of a plan: sizes by role, kept tensors with reasons, entries of config.json, output, warnings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from g4convert.cli.show_engines import verdicts
from g4convert.cli.show_methods import basis, methods
from g4convert.cli.tables import facts, fitted, put, table
from g4convert.planning.recipe import RecipeMethod
from g4convert.quantities import count, plural, rough_duration, size

if TYPE_CHECKING:
    from g4convert.planning.report import PlanReport

_AUTO = ": mse (least squared error), or the source's own grid if it was trained for 4 bits (QAT)"
"""Choices of `auto`, which reads some weights first."""
_MOST_FILES = 6
"""Largest number of files of a pattern that are named."""


def plan(out: Console, found: "PlanReport", *, tensors: bool) -> None:
    """Print a plan: sizes by role, kept tensors with reasons, entries of config.json, output, warnings."""
    recipe, architecture = found.recipe.recipe, found.plan.architecture
    out.print(f"[bold]{escape(found.source.typed)}[/]: {escape(architecture.family)}", soft_wrap=True)
    spelled = [dialect(use.description, use.count, use.example) for use in found.plan.inventory.dialects]
    method = f"{recipe.method}{_AUTO}" if recipe.method is RecipeMethod.AUTO else recipe.method
    top = {
        "model type": architecture.model_type,
        "names": "\n".join(spelled),
        "recipe": f"{found.recipe.name}: {found.packed_as}, method {method}",
    }
    if not spelled:
        del top["names"]
    put(out, facts(top))
    out.print()
    put(out, _plan_sizes(found, out.width))
    _section(out, "stays as it is", {f"{role} ({n:,})": why for (role, why), n in found.kept.items()})
    _section(out, "left out", {plural(n, "tensor"): why for why, n in found.dropped.items()})
    if tensors:
        out.print()
        for line in map(_step, found.to_dict(tensors=True)["tensors"]):
            out.print(line, soft_wrap=True, markup=False)
    out.print()
    verdicts(out, found.verdicts, verbose=tensors)
    out.print()
    put(out, facts(_outcome(found, lists=tensors)))
    if found.costs[1:]:
        out.print()
        put(out, methods(found.costs))
        put(out, Padding(Text(basis(found.costs, found.workers, own_texts=found.own_texts), style="dim"), (0, 0, 0, 2)))
    for warning in found.plan.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def dialect(text: str, number: int, example: tuple[str, str]) -> str:
    """Return the text of a spelling of names, with an example."""
    before, after = example
    return f"{text}: {plural(number, 'tensor')}" + ("" if before == after else f", e.g. {before} -> {after}")


def _plan_sizes(found: "PlanReport", width: int) -> Table:
    rows = [
        (
            row.role,
            f"{row.tensors:,}",
            count(row.params),
            row.action,
            size(row.before),
            size(row.after),
            f"{row.bits_per_weight:.1f}" if row.after else "",
        )
        for row in found.sizes
    ]
    before, after = sum(row.before for row in found.sizes), sum(row.after for row in found.sizes)
    params, written = sum(row.params for row in found.sizes), sum(row.params for row in found.sizes if row.after)
    tensors = sum(row.tensors for row in found.sizes)
    bits = f"{8 * after / written:.1f}" if written else ""
    rows.append(("total", f"{tensors:,}", count(params), "", size(before), size(after), bits))
    columns = ("role", "tensors", "params", "action", "before", "after", "bits/weight")
    return table(*fitted(columns, rows, width, spare=("params", "tensors", "bits/weight")))


def _outcome(found: "PlanReport", *, lists: bool) -> dict[str, str]:
    """Return the rows on the output; with `lists`, those of its config.json, too."""
    weights = found.outlook.weights
    rows = {}
    if lists and weights.targets:
        groups = found.groups
        for group in groups:
            what = f"targets int{group.num_bits} {_extent(group.group_size)}" if groups[1:] else "targets"
            rows[what] = "  ".join(group.targets)
        rows["ignore"] = "  ".join(weights.ignore) or "nothing"
        rows = {f"config.json: {what}": names for what, names in rows.items()}
    files = plural(len(found.layout.shards), "file")
    rows["output"] = f"{size(sum(row.after for row in found.sizes))} in {files}"
    if not found.costs[1:]:
        time, workers = rough_duration(found.costs[0].seconds), plural(found.workers, "thread")
        rows["time"] = f"about {time} on {workers}, a check of every weight included"
    limit = found.recipe.recipe.max_shard_size
    for one in found.plan.beside.decided:
        rows[f"{one.option} {one.pattern}"] = _named(one.files)
    if larger := [shard for shard in found.layout.shards if shard.size - len(shard.head) > limit]:
        rows["larger"] = f"{plural(len(larger), 'file')} above max_shard_size {size(limit)}: a module is not split"
    return rows


def _extent(group_size: int | None) -> str:
    return f"g{group_size}" if group_size else "per row"


def _named(files: Sequence[str]) -> str:
    """Return the names of the first files, and the number of the others."""
    return ", ".join(files[:_MOST_FILES]) + (f" and {len(files) - _MOST_FILES} more" if files[_MOST_FILES:] else "")


def _step(step: Mapping[str, Any]) -> str:
    """Return the line of `plan -v` for one step."""
    source = ", ".join(step["from"])
    match step["action"]:
        case "pack":
            module = step["names"][0].removesuffix("_packed")
            return f"pack  {source} -> {module}_{{packed,scale,shape}}"
        case "keep":
            return f"keep  {step['name']}" if source == step["name"] else f"keep  {source} -> {step['name']}"
    return f"drop  {source}: {step['reason']}"


def _section(out: Console, title: str, rows: Mapping[str, str]) -> None:
    if rows:
        out.print(f"\n{title}")
        put(out, facts(rows, indent=2, dim=True))
