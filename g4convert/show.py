"""What people read: tables on stdout, messages on stderr. Understandable without colour."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from g4convert.demo import Demonstration
    from g4convert.inspection.description import Description

from g4convert.errors import G4Error
from g4convert.plan_report import PlanReport
from g4convert.progress import peak_memory
from g4convert.sizes import RoleSize
from g4convert.summary import ErrorRow, Summary

__all__ = ["console", "demo", "description", "error", "messages", "pairs", "plan", "summary"]

_NUMBERS = frozenset(("tensors", "params", "bytes", "bits/weight", "names", "count"))


def console(*, no_color: bool = False) -> Console:
    """Where results go."""
    return Console(no_color=no_color or None, highlight=False, soft_wrap=False)


def messages(*, no_color: bool = False) -> Console:
    """Where progress and messages go."""
    return Console(stderr=True, no_color=no_color or None, highlight=False)


def error(problem: G4Error) -> None:
    """`error:` in one line, the offenders, then `hint:`."""
    out = messages()
    out.print(f"[bold red]error:[/] {escape(problem.message)}", soft_wrap=True)
    for offender in problem.offenders:
        out.print(f"  {escape(offender)}", soft_wrap=True)
    if problem.hint:
        out.print(f"[bold]hint:[/] {escape(problem.hint)}", soft_wrap=True)


def pairs(out: Console, rows: Mapping[str, str]) -> None:
    """Names and what they are."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(escape(name), f"[dim]{escape(text)}[/]")
    out.print(table)


def plan(out: Console, found: PlanReport, *, tensors: bool) -> None:
    """The plan: sizes by role, what stays and why, what config.json will say, output, warnings."""
    recipe, architecture = found.recipe.recipe, found.plan.architecture
    size = f"groups of {recipe.group_size}" if recipe.group_size else "one scale per row"
    out.print(f"[bold]{escape(found.source.name)}[/]  {escape(architecture.family)} ({architecture.model_type})")
    for use in found.plan.inventory.dialects:
        before, after = use.example
        example = "" if before == after else f", e.g. {before} -> {after}"
        out.print(f"names   {escape(use.description)}: {use.count} tensors{escape(example)}", soft_wrap=True)
    out.print(f"recipe  {escape(found.recipe.name)}: int{recipe.num_bits} symmetric, {size}, method {recipe.method}")
    out.print()
    out.print(_sizes(found.sizes))
    _reasons(out, "stays as it is", {f"{role} ({n})": why for (role, why), n in found.kept.items()})
    _reasons(out, "left out", {f"{n} tensors": why for why, n in found.dropped.items()})
    config = found.quantization_config
    if config:
        out.print(f"\ntargets  {'  '.join(config['config_groups']['group_0']['targets'])}")
        out.print(f"ignore   {escape('  '.join(config['ignore']))}", soft_wrap=True)
    if tensors:
        for step in found.to_dict(tensors=True)["tensors"]:
            names = step.get("names", [step.get("name", step.get("reason", ""))])
            out.print(
                f"{step['action']:<5} {', '.join(step['from'])} -> {', '.join(names)}",
                soft_wrap=True,
                markup=False,
            )
    out.print(
        f"\noutput   {_bytes(found.output_bytes)} in {_files(len(found.layout.shards))}, "
        f"about {_duration(found.seconds)} on {found.workers} workers"
    )
    for warning in found.plan.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def summary(out: Console, done: Summary, output: Path, *, tensors: bool) -> None:
    """The closing card: sizes, errors, the worst tensors, the next command."""
    out.print(f"[bold]{escape(str(output))}[/]  {_bytes(done.before)} -> {_bytes(done.after)}", soft_wrap=True)
    out.print(f"{done.bits_per_weight:.2f} bits per weight, {_files(done.files)}, {_bytes(peak_memory())} peak memory")
    out.print(f"method {done.choice.method}: {escape(done.choice.why)}", soft_wrap=True)
    if not done.total.stats.groups:
        return
    out.print()
    out.print(_errors([done.total, *done.roles], "weights"))
    out.print()
    out.print(_errors(done.modules if tensors else done.worst, "all tensors" if tensors else "largest relative error"))
    out.print(f"\nnext: vllm serve {escape(str(output))}", soft_wrap=True)


def demo(out: Console, done: "Demonstration") -> None:
    """The plan, the closing card, and the two differences of logits for each kind of prompt."""
    plan(out, done.plan, tensors=False)
    out.print()
    summary(out, done.summary, done.output, tensors=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("\nprompt")
    table.add_column("loaded against dequantized\nlargest difference", justify="right")
    for header in ("dequantized against original\nlargest difference", "mean KL", "same top token"):
        table.add_column(header if "\n" in header else f"\n{header}", justify="right")
    for row in done.comparisons:
        table.add_row(
            row.prompt,
            f"{row.read_back.max_abs:.1e}",
            f"{row.cost.max_abs:.2f}",
            f"{row.cost.kl_mean:.4f}",
            f"{row.cost.top1_agreement:.0%}",
        )
    out.print()
    out.print(table)
    out.print(
        "\nThe first must be about 0: what was written is what is read. The others are the price of 4 bits, here on"
    )
    out.print("random weights of a toy; on a trained model it is far smaller.")


def description(out: Console, found: "Description") -> None:
    """What a checkpoint is, table by table."""
    out.print(f"[bold]{escape(found.path)}[/]  {escape(found.family)} ({escape(found.model_type)})", soft_wrap=True)
    for part in found.tables():
        table = Table(box=None, pad_edge=False)
        for column in part.columns:
            table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
        for row in part.rows:
            table.add_row(*map(escape, row))
        out.print(f"\n{part.title}")
        out.print(table)


def _sizes(sizes: Iterable[RoleSize]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("role")
    for header in ("tensors", "params", "action", "before", "after", "bits/weight"):
        table.add_column(header, justify="left" if header == "action" else "right")
    rows = list(sizes)
    for size in rows:
        table.add_row(
            size.role,
            f"{size.tensors:,}",
            _count(size.params),
            size.action,
            _bytes(size.before),
            _bytes(size.after),
            f"{size.bits_per_weight:.2f}" if size.after else "",
        )
    after, params = sum(size.after for size in rows), sum(size.params for size in rows if size.after)
    table.add_section()
    table.add_row(
        "total",
        f"{sum(size.tensors for size in rows):,}",
        _count(sum(size.params for size in rows)),
        "",
        _bytes(sum(size.before for size in rows)),
        _bytes(after),
        f"{8 * after / params:.2f}" if params else "",
    )
    return table


def _errors(rows: Iterable[ErrorRow], title: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title)
    for header in ("relative error", "SQNR dB", "groups", "on a lattice", "exact"):
        table.add_column(header, justify="right")
    for row in rows:
        groups = max(row.stats.groups, 1)
        table.add_row(
            escape(row.name.removeprefix("model.language_model.")),
            f"{row.relative_error:.5f}",
            f"{row.sqnr_db:.1f}",
            f"{row.stats.groups:,}",
            f"{row.stats.lattice_groups / groups:.1%}",
            f"{row.stats.exact_groups / groups:.1%}",
        )
    return table


def _reasons(out: Console, title: str, rows: Mapping[str, str]) -> None:
    if rows:
        out.print(f"\n{title}")
        table = Table.grid(padding=(0, 2))
        for subject, why in rows.items():
            table.add_row(f"  {escape(subject)}", f"[dim]{escape(why)}[/]")
        out.print(table)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def _count(number: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
