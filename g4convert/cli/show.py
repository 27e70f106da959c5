"""Output for people: results on stdout, messages on stderr. Understandable without colour."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from g4convert.cli import show_summary
from g4convert.cli.show_engines import verdicts
from g4convert.cli.tables import facts, fitted, put, table
from g4convert.errors import G4Error
from g4convert.printable import printable, printable_lines
from g4convert.quantities import count, duration, plural, size

if TYPE_CHECKING:
    from g4convert.demo.run import Demonstration
    from g4convert.forward.generation import Answer
    from g4convert.inspection.description import Description
    from g4convert.planning.recipe import Resolved
    from g4convert.planning.report import PlanReport

__all__ = ["Talk", "console", "demo", "description", "error", "messages", "pairs", "plan", "settings"]

_MOST_LINES = 20
"""Offenders or names of one kind that are printed without -v."""
_MOST_FILES = 6
"""Files of a pattern that are named."""
_WIDTH_OF_A_PIPE = 240
"""Width of output that is not a terminal: no table is wrapped, so that grep finds whole names."""
_WIDTH_OF_PROSE = 100


class _Console(Console):
    """A console whose reader may leave: the rest goes nowhere and the work goes on.

    Control characters of text are shown as escapes. Where messages cannot be written, on a full disk, the work that
    they tell of goes on without them.
    """

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 -- as rich declares it
        shown = (printable_lines(one) if isinstance(one, str) else one for one in objects)
        try:
            super().print(*shown, **options)
        except OSError:
            if not self.stderr:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(*, no_color: bool = False) -> Console:
    """Return the console for results."""
    return _console(stderr=False, no_color=no_color)


def messages(*, no_color: bool = False) -> Console:
    """Return the console for progress and messages."""
    return _console(stderr=True, no_color=no_color)


def _console(*, stderr: bool, no_color: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_A_PIPE
    plain = no_color or bool(os.environ.get("NO_COLOR"))
    return _Console(stderr=stderr, color_system=None if plain else "auto", width=width, highlight=False, emoji=False)


def error(out: Console, problem: G4Error, *, verbose: bool = False) -> None:
    """`error:` in one line, the offenders, then `hint:`."""
    out.print(f"[bold red]error:[/] {escape(printable(problem.message))}", soft_wrap=True)
    for line in _first(problem.offenders, verbose=verbose):
        out.print(f"  {escape(printable(line))}", soft_wrap=True)
    if problem.hint:
        out.print(f"[bold]hint:[/] {escape(printable(problem.hint))}", soft_wrap=True)


def pairs(out: Console, rows: Mapping[str, str]) -> None:
    """Names and what they are."""
    put(out, facts(rows, dim=True))


def settings(out: Console, resolved: "Resolved") -> None:
    """Every value of a recipe and where it comes from."""
    rows = []
    for key, value in resolved.settings().items():
        text = ", ".join(value) if isinstance(value, list) else str(value).lower() if key == "signed" else str(value)
        rows.append((key, f"{text} ({size(value)})" if key == "max_shard_size" else text, resolved.origins[key]))
    put(out, table(("setting", "value", "from"), rows))


def plan(out: Console, found: "PlanReport", *, tensors: bool) -> None:
    """The plan: sizes by role, what stays and why, what config.json will say, output, warnings."""
    recipe, architecture = found.recipe.recipe, found.plan.architecture
    groups = f"groups of {recipe.group_size}" if recipe.group_size else "one scale per row"
    out.print(f"[bold]{escape(found.source.name)}[/]: {escape(architecture.family)}", soft_wrap=True)
    spelled = [_dialect(use.description, use.count, use.example) for use in found.plan.inventory.dialects]
    top = {
        "model type": architecture.model_type,
        "names": "\n".join(spelled) or "as transformers 5 stores them",
        "recipe": f"{found.recipe.name}: int{recipe.num_bits} symmetric, {groups}, method {recipe.method}",
    }
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
    put(out, facts(_outcome(found)))
    for warning in found.plan.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def demo(out: Console, done: "Demonstration", *, quiet: bool) -> None:
    """The plan and the closing card unless `quiet`, and the two differences of logits for each kind of prompt."""
    if not quiet:
        plan(out, done.plan, tensors=False)
        out.print()
        show_summary.summary(out, done.summary, done.output, tensors=False)
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
        for row in done.comparisons
    ]
    put(out, table(columns, rows, right=columns[1:]))
    out.print()
    trained = (
        "tokens here are random, see below for answers that it has learned"
        if done.is_trained
        else "far smaller on a trained model than on the random weights of this one"
    )
    meaning = {
        "read back": "largest difference of a logit between the loaded result and the source with dequantized "
        "weights: about 0, as what was written is what is read",
        "cost": "the same between the source with dequantized weights and the source: the price of 4 bits, as are "
        f"mean KL and top token; {trained}",
    }
    put(out, facts(meaning), width=_WIDTH_OF_PROSE)
    asked = f"{quote(str(done.output))} --reference {quote(str(done.source))}"
    out.print(f"next: g4convert verify {escape(asked)} --level logits", soft_wrap=True)


def description(out: Console, found: "Description", *, verbose: bool) -> None:
    """Print a description of a checkpoint: sizes by role, spelling of names, what its config says, misfits."""
    out.print(f"[bold]{escape(found.path)}[/]: {escape(found.family)}", soft_wrap=True)
    top = {"model type": found.model_type}
    if found.dialects:
        top["names"] = "\n".join(_dialect(use.description, use.count, use.example) for use in found.dialects)
    put(out, facts(top))
    rows = [
        (
            str(role.role),
            f"{role.tensors:,}",
            count(role.params),
            size(role.nbytes),
            f"{role.bits_per_weight:.2f}" if role.params else "",
            ", ".join(f"{number:,} x {scheme}" for scheme, number in role.schemes.items()),
        )
        for role in (*found.roles, found.total)
    ]
    out.print()
    columns = ("role", "tensors", "params", "size", "bits/weight", "stored as")
    put(out, table(*fitted(columns, rows, out.width, spare=("params", "tensors", "bits/weight"))))
    for part in found.tables():
        if part.title in {"by role", "spelling"}:
            continue
        out.print(f"\n{part.title}")
        if len(part.columns) == 1:
            for line in _first([row[0] for row in part.rows], verbose=verbose):
                out.print(f"  {escape(line)}", soft_wrap=True)
        else:
            put(out, table(part.columns, part.rows))


class Talk:
    """Answers as they come: their text on stdout, all else on stderr.

    Args:
        no_color: plain text.
        quiet: answers only.
        mute: not even these.
        several: whether to repeat each prompt before its answer, and to part answers by an empty line.
    """

    def __init__(self, *, no_color: bool, quiet: bool, mute: bool, several: bool) -> None:
        self._out, self._messages = console(no_color=True), messages(no_color=no_color)
        self._quiet, self._mute, self._several = quiet or mute, mute, several
        self._said = 0

    def tuned(self, path: Path, products: int) -> None:
        """A table of tiles was written."""
        if not self._quiet:
            words = f"{path}: tiles of {plural(products, 'product')}; G4CONVERT_TILES={path} uses them again"
            self._messages.print(f"[dim]{escape(words)}[/]", soft_wrap=True)

    @contextmanager
    def about(self, prompt: str) -> Iterator[None]:
        """One prompt is answered inside; its line is ended whatever happens."""
        if self._said:
            self.show("\n")
        self._said += 1
        if self._several and not self._quiet:
            self._messages.print(f"[dim]> {escape(prompt)}[/]", soft_wrap=True)
        try:
            yield
        finally:
            self.show("\n")

    def show(self, text: str) -> None:
        """A piece of the answer."""
        if not self._mute:
            self._out.out(text, end="", highlight=False)

    def measured(self, said: "Answer") -> None:
        """Print how long it took."""
        if not self._quiet:
            speed = "" if said.tokens_per_second is None else f", then {said.tokens_per_second:.1f} tokens/s"
            end = "" if said.ended else "; --max-new-tokens ended it"
            words = f"{plural(len(said.token_ids), 'token')}: the first after {said.prefill_seconds:.2f} s{speed}{end}"
            self._messages.print(f"[dim]{words}[/]", soft_wrap=True)


def _first(lines: Sequence[str], *, verbose: bool) -> Iterator[str]:
    """The first lines and how many more there are; with `verbose` all of them."""
    yield from lines if verbose else islice(lines, _MOST_LINES)
    if not verbose and len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES:,} more (-v lists all)"


def _dialect(text: str, number: int, example: tuple[str, str]) -> str:
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
            f"{row.bits_per_weight:.2f}" if row.after else "",
        )
        for row in found.sizes
    ]
    before, after = sum(row.before for row in found.sizes), sum(row.after for row in found.sizes)
    params, written = sum(row.params for row in found.sizes), sum(row.params for row in found.sizes if row.after)
    tensors = sum(row.tensors for row in found.sizes)
    bits = f"{8 * after / written:.2f}" if written else ""
    rows.append(("total", f"{tensors:,}", count(params), "", size(before), size(after), bits))
    columns = ("role", "tensors", "params", "action", "before", "after", "bits/weight")
    return table(*fitted(columns, rows, width, spare=("params", "tensors", "bits/weight")))


def _outcome(found: "PlanReport") -> dict[str, str]:
    weights = found.outlook.weights
    rows = {}
    if weights.targets:
        rows["targets"] = "  ".join(weights.targets)
        rows["ignore"] = "  ".join(weights.ignore)
    files, workers = plural(len(found.layout.shards), "file"), plural(found.workers, "worker")
    rows["output"] = f"{size(found.output_bytes)} in {files}, headers included"
    rows["time"] = f"about {duration(found.seconds)} on {workers}, with the check at the end (--verify weights)"
    limit = found.recipe.recipe.max_shard_size
    for one in found.plan.beside.decided:
        rows[f"{one.option} {one.pattern}"] = _named(one.files)
    if larger := [shard for shard in found.layout.shards if shard.size - len(shard.head) > limit]:
        rows["larger"] = f"{plural(len(larger), 'file')} above max_shard_size {size(limit)}: a module is not split"
    return rows


def _named(files: Sequence[str]) -> str:
    """The first of some files, and how many more there are."""
    return ", ".join(files[:_MOST_FILES]) + (f" and {len(files) - _MOST_FILES} more" if files[_MOST_FILES:] else "")


def _step(step: Mapping[str, Any]) -> str:
    """One line of `plan -v`."""
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
