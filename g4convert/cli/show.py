"""Output for users: results on stdout, messages on stderr. It is understandable without colour."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from g4convert.cli import show_plan, show_summary
from g4convert.cli.next_steps import show_next
from g4convert.cli.show_plan import describe_dialect
from g4convert.cli.tables import fit_to_terminal, make_facts, make_table, print_prose, print_trimmed
from g4convert.errors import G4Error
from g4convert.printable import printable, printable_lines
from g4convert.quantities import count, plural, size

if TYPE_CHECKING:
    from g4convert.demo.run import Demonstration
    from g4convert.inspection.description import Description
    from g4convert.planning.recipe_files import ResolvedRecipe

_MOST_LINES = 20
"""Largest number of offenders, or of names in a list, that is printed without -v."""
_WIDTH_OF_A_PIPE = 240
"""Columns of output to a pipe or file, so wide that tables do not wrap and grep finds whole names."""
_WIDTH_OF_PROSE = 100
_LEAST_WIDTH = 40
"""Columns below which a terminal may wrap lines itself: rich cut them, and with COLUMNS=0 printed nothing."""


class _Console(Console):
    """Console that discards its output after a broken pipe, while the work goes on.

    Control characters in text are printed as escapes. If messages cannot be written, for example on a full disk, the
    work goes on without messages.
    """

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 -- as rich declares it
        escaped = (printable_lines(item) if isinstance(item, str) else item for item in objects)
        try:
            super().print(*escaped, **options)
        except OSError as error:
            if not self.stderr:
                raise OSError(error.errno, error.strerror, "standard output") from error
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(*, no_color: bool = False) -> Console:
    """Return the console for results."""
    return _make_console(stderr=False, no_color=no_color)


def messages(*, no_color: bool = False) -> Console:
    """Return the console for progress and messages."""
    return _make_console(stderr=True, no_color=no_color)


def _make_console(*, stderr: bool, no_color: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_A_PIPE
    plain = no_color or bool(os.environ.get("NO_COLOR"))
    console = _Console(stderr=stderr, color_system=None if plain else "auto", width=width, highlight=False, emoji=False)
    console.width = max(console.width, _LEAST_WIDTH)
    return console


def print_error(out: Console, problem: G4Error, *, verbose: bool = False) -> None:
    """Print `error:` with the message in one line, the offenders, then `hint:`."""
    print_prose(out, f"[bold red]error:[/] {escape(printable(problem.message))}")
    for line in _first_lines(problem.offenders, verbose=verbose):
        out.print(f"  {escape(printable(line))}", soft_wrap=True)
    if problem.hint:
        out.print(f"[bold]hint:[/] {escape(printable(problem.hint))}", soft_wrap=True)


def print_pairs(out: Console, rows: Mapping[str, str]) -> None:
    """Print names with their texts."""
    print_trimmed(out, make_facts(rows, dim=True))


def print_reference(out: Console, stored: Mapping[str, Any], model: str) -> None:
    """Print what a stored reference of a model holds, and the command that uses it."""
    counts = f"{plural(stored['tokens'], 'prediction')} of {plural(stored['probes'], 'prompt')}"
    content = f"{size(stored['bytes'])}: {counts}"
    if likeliest := stored["likeliest"]:
        content += (
            f", each with its {likeliest:,} likeliest tokens, so KL comes out about 3 % low "
            "(measured on one model in 4 bits); limits are the same"
        )
    print_pairs(out, {"model": model, "stored": content})
    command = f"g4convert verify OUT --reference {quote(stored['output'])}"
    show_next(out, command, "OUT: a quantized checkpoint of the model")


def print_settings(out: Console, resolved: "ResolvedRecipe") -> None:
    """Print every value of a recipe with its origin."""
    rows = []
    for key, value in resolved.settings().items():
        text = _format_value(value)
        rows.append((key, f"{text} ({size(value)})" if key == "max_shard_size" else text, resolved.origins[key]))
    print_trimmed(out, make_table(("setting", "value", "from"), rows))


def _format_value(value: object) -> str:
    """Return a recipe's value as YAML writes it in a line, but lists without brackets."""
    match value:
        case bool():
            return str(value).lower()
        case list():
            return (
                "\n".join(map(_format_value, value))
                if any(isinstance(item, dict) for item in value)
                else ", ".join(value)
            )
        case dict():
            return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def print_demo(out: Console, demonstration: "Demonstration", *, quiet: bool) -> None:
    """Print the plan and the closing card unless `quiet`, and both differences of logits for each kind of prompt."""
    if not quiet:
        show_plan.print_plan(out, demonstration.plan, tensors=False)
        out.print()
        show_summary.print_summary(out, demonstration.summary, demonstration.output, tensors=False)
        out.print()
    columns = ("prompt", "read back", "cost", "mean KL", "same top token")
    rows = [
        (
            row.prompt,
            f"{row.read_back.max_abs:.1e}",
            f"{row.cost.max_abs:.2f}",
            f"{row.cost.kl_mean:.4f}",
            f"{row.cost.top1_agreement:.0%}",
        )
        for row in demonstration.comparisons
    ]
    print_trimmed(out, make_table(columns, rows, right=columns[1:]))
    out.print()
    caution = (
        "answers here are bundled ones; the command below scores the model's own, of which less is lost"
        if demonstration.is_trained
        else "far smaller on a trained model than on the random weights of this one"
    )
    meaning = {
        "read back": "largest difference of a logit between the packed result and its dequantized weights: about 0, "
        "as what was written is what runs",
        "cost": "the same between the dequantized weights and the source: the price of 4 bits, as are "
        f"mean KL and top token; {caution}",
    }
    print_trimmed(out, make_facts(meaning), width=_WIDTH_OF_PROSE)
    arguments = f"{quote(str(demonstration.output))} --reference {quote(str(demonstration.source))}"
    show_next(out, f"g4convert verify {arguments} --level logits")


def print_description(out: Console, description: "Description", *, verbose: bool) -> None:
    """Print the description of a checkpoint: sizes by role, spelling of names, entries of its config, remarks."""
    out.print(f"[bold]{escape(description.path)}[/]: {escape(description.family)}", soft_wrap=True)
    top = {"model type": description.model_type}
    if description.dialects:
        top["names"] = "\n".join(
            describe_dialect(use.description, use.count, use.example) for use in description.dialects
        )
    print_trimmed(out, make_facts(top))
    rows = [
        (
            str(role.role),
            f"{role.tensors:,}",
            count(role.params),
            size(role.nbytes),
            f"{role.bits_per_weight:.1f}" if role.params else "",
            ", ".join(f"{number:,} x {scheme}" for scheme, number in role.schemes.items()),
        )
        for role in (*description.roles, description.total)
    ]
    out.print()
    columns = ("role", "tensors", "params", "size", "bits/weight", "stored as")
    print_trimmed(
        out, make_table(*fit_to_terminal(columns, rows, out.width, spare=("params", "tensors", "bits/weight")))
    )
    for section in description.tables():
        out.print(f"\n{section.title}")
        if len(section.columns) == 1:
            for line in _first_lines([row[0] for row in section.rows], verbose=verbose):
                out.print(f"  {escape(line)}", soft_wrap=True)
        else:
            print_trimmed(out, make_table(section.columns, section.rows))


def _first_lines(lines: Sequence[str], *, verbose: bool) -> Iterator[str]:
    """Yield the first lines and the number of the others; with `verbose`, all lines."""
    yield from lines if verbose else islice(lines, _MOST_LINES)
    if not verbose and len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES:,} more (-v lists all)"
