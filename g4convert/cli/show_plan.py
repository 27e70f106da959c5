"""Printing of a plan: sizes by role, kept tensors with reasons, entries of config.json, output, warnings."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from g4convert.cli.show_engines import print_verdicts
from g4convert.cli.show_methods import describe_basis, make_methods_table
from g4convert.cli.tables import fit_to_terminal, make_facts, make_table, print_trimmed
from g4convert.planning.plan import Copy, Drop, Quantize
from g4convert.planning.recipe import RecipeMethod
from g4convert.quantities import count, plural, rough_duration, size

if TYPE_CHECKING:
    from g4convert.planning.report import PlanReport

_AUTO = ": mse (least squared error), or the source's own grid if it was trained for 4 bits (QAT)"
"""Choices of `auto`, which reads some weights first."""
_MOST_FILES = 6
"""Largest number of files of a pattern that are named."""


def print_plan(out: Console, report: "PlanReport", *, tensors: bool) -> None:
    """Print a plan: sizes by role, kept tensors with reasons, entries of config.json, output, warnings."""
    recipe, architecture = report.recipe.recipe, report.plan.architecture
    out.print(f"[bold]{escape(report.source.typed)}[/]: {escape(architecture.family)}", soft_wrap=True)
    spellings = [describe_dialect(use.description, use.count, use.example) for use in report.plan.inventory.dialects]
    method = f"{recipe.method}{_AUTO}" if recipe.method is RecipeMethod.AUTO else recipe.method
    facts = {
        "model type": architecture.model_type,
        **({"names": "\n".join(spellings)} if spellings else {}),
        "recipe": f"{report.recipe.name}: {report.packed_as}, method {method}",
    }
    print_trimmed(out, make_facts(facts))
    out.print()
    print_trimmed(out, _make_sizes_table(report, out.width))
    _print_section(out, "stays as it is", {f"{role} ({n:,})": why for (role, why), n in report.kept.items()})
    _print_section(out, "left out", {plural(n, "tensor"): why for why, n in report.dropped.items()})
    if tensors:
        out.print()
        for step in report.plan.steps:
            out.print(_describe_step(step), soft_wrap=True, markup=False)
    out.print()
    print_verdicts(out, report.verdicts, verbose=tensors)
    out.print()
    print_trimmed(out, make_facts(_outcome_rows(report, lists=tensors)))
    if report.costs[1:]:
        out.print()
        print_trimmed(out, make_methods_table(report.costs))
        basis = describe_basis(report.costs, report.workers, own_texts=report.own_texts)
        print_trimmed(out, Padding(Text(basis, style="dim"), (0, 0, 0, 2)))
    for warning in report.plan.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def describe_dialect(text: str, number: int, example: tuple[str, str]) -> str:
    """Return the text of a spelling of names, with an example."""
    before, after = example
    return f"{text}: {plural(number, 'tensor')}" + ("" if before == after else f", e.g. {before} -> {after}")


def _make_sizes_table(report: "PlanReport", width: int) -> Table:
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
        for row in report.sizes
    ]
    before, after = sum(row.before for row in report.sizes), sum(row.after for row in report.sizes)
    params, written = sum(row.params for row in report.sizes), sum(row.params for row in report.sizes if row.after)
    tensors = sum(row.tensors for row in report.sizes)
    bits = f"{8 * after / written:.1f}" if written else ""
    rows.append(("total", f"{tensors:,}", count(params), "", size(before), size(after), bits))
    columns = ("role", "tensors", "params", "action", "before", "after", "bits/weight")
    return make_table(*fit_to_terminal(columns, rows, width, spare=("params", "tensors", "bits/weight")))


def _outcome_rows(report: "PlanReport", *, lists: bool) -> dict[str, str]:
    """Return the rows on the output; with `lists`, those of its config.json, too."""
    weights = report.outlook.weights
    rows = {}
    if lists and weights.targets:
        groups = report.groups
        for group in groups:
            key = f"targets int{group.num_bits} {_describe_group_size(group.group_size)}" if groups[1:] else "targets"
            rows[key] = "  ".join(group.targets)
        rows["ignore"] = "  ".join(weights.ignore) or "nothing"
        rows = {f"config.json: {key}": names for key, names in rows.items()}
    files = plural(len(report.layout.shards), "file")
    rows["output"] = f"{size(sum(row.after for row in report.sizes))} in {files}"
    if not report.costs[1:]:
        time, workers = rough_duration(report.costs[0].seconds), plural(report.workers, "thread")
        rows["time"] = f"about {time} on {workers}, a check of every weight included"
    limit = report.recipe.recipe.max_shard_size
    for choice in report.plan.beside.decided:
        rows[f"{choice.option} {choice.pattern}"] = _name_files(choice.files)
    if larger := [shard for shard in report.layout.shards if shard.size - len(shard.head) > limit]:
        rows["larger"] = f"{plural(len(larger), 'file')} above max_shard_size {size(limit)}: a module is not split"
    return rows


def _describe_group_size(group_size: int | None) -> str:
    return f"g{group_size}" if group_size else "per row"


def _name_files(files: Sequence[str]) -> str:
    """Return the names of the first files, and the number of the others."""
    return ", ".join(files[:_MOST_FILES]) + (f" and {len(files) - _MOST_FILES} more" if files[_MOST_FILES:] else "")


def _describe_step(step: Copy | Quantize | Drop) -> str:
    """Return the line of `plan -v` for one step."""
    match step:
        case Quantize():
            weight = step.packed.name.removesuffix("_packed")
            return f"pack  {step.weight.segment.source} -> {weight}_{{packed,scale,shape}}"
        case Copy():
            source = ", ".join(segment.source for segment in step.segments)
            return f"keep  {source}" if source == step.target.name else f"keep  {source} -> {step.target.name}"
        case Drop():
            return f"drop  {step.source.name}: {step.reason}"


def _print_section(out: Console, title: str, rows: Mapping[str, str]) -> None:
    if rows:
        out.print(f"\n{title}")
        print_trimmed(out, make_facts(rows, indent=2, dim=True))
