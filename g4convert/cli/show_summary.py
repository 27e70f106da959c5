"""The closing card of a conversion: sizes, errors, engines that refuse it, the next command."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from g4convert.cli.next_steps import Step, show_next
from g4convert.cli.tables import facts, prose, put, table
from g4convert.quantities import plural, size

if TYPE_CHECKING:
    from g4convert.conversion.result import ErrorRow, MethodChoice, Summary
    from g4convert.engines.verdicts import Verdict
    from g4convert.planning.costs import MethodCost
    from g4convert.planning.recipe import Recipe

_MUCH = 1 / 4
"""Share of the output above which a role that is not packed is named."""
_SOME = 0.01
"""Share of groups on a 4-bit grid from which they are a sign of QAT."""


def summary(  # noqa: PLR0913 - what is said, and how much of it
    out: Console,
    done: "Summary",
    output: Path,
    *,
    tensors: bool,
    peak: int | None = None,
    refused: Sequence["Verdict"] = (),
    answers: str = "",
    methods: Table | None = None,
    following: Step = Step(""),  # noqa: B008 - it cannot change
) -> None:
    """Print the closing card: sizes, errors, engines that refuse the output, the next command.

    Args:
        out: console that prints.
        done: summary of the conversion.
        output: directory of the output.
        tensors: print tables of the errors, with all tensors, and the peak of memory.
        peak: peak of memory in bytes; None if unknown.
        refused: verdicts of engines that cannot load the output.
        answers: sentence on the quality of answers, and the table below it, from `answers`.
        methods: the table.
        following: what to do next.
    """
    rows = {
        "written": str(output),
        "size": f"{size(done.before)} -> {size(done.after)} in {plural(done.files, 'file')}, "
        f"{done.bits_per_weight:.1f} bits per weight{_kept(done)}",
        "method": _method(done.choice),
    }
    if done.calibration is not None:
        given = done.calibration.get("ways") or {"weights by their inputs": done.calibration["weighted"]}
        ways = ", ".join(f"{count:,} {way.replace('_', '-')}" for way, count in given.items() if count)
        judged = "; each weight took the way with the least error of its outputs" if "ways" in done.calibration else ""
        texts = f"{done.calibration['samples']:,} samples of {done.calibration['length']:,} tokens"
        rows["calibrated"] = f"on {texts}: {ways}{judged}"
        if (gained := done.calibration.get("scales")) is not None:
            rows["scales"] = _scales(gained)
    if peak is not None and tensors:
        rows["memory"] = f"{size(peak)} at the peak of the conversion"
    if done.total.stats.groups:
        roles = ", ".join(f"{row.name} {_percent(row)}" for row in done.roles)
        traded = "; calibration trades it for smaller errors of outputs" if done.calibration is not None else ""
        mean = "mean over tensors"
        rows["error"] = f"{_percent(done.total)} ({roles}): squared errors over squared weights, {mean}{traded}"
        put(out, facts(rows))
        if tensors:
            out.print()
            put(out, _errors("weights", [done.total, *done.roles]))
            out.print()
            put(out, _errors("all tensors", done.modules))
            out.print("\n[dim]relative error of several weights: the mean of theirs[/]")
    else:
        put(out, facts({**rows, "method": "nothing is packed"}))
    if refused:
        names = dict.fromkeys(one.label if one.tp == 1 else f"{one.label} on {one.tp} GPUs" for one in refused)
        asked = " ".join(
            [quote(str(output)), *(f"--tp {tp}" for tp in dict.fromkeys(one.tp for one in refused) if tp > 1)]
        )
        why = f"`g4convert check {asked}` says why"
        prose(out, f"not for {escape(', '.join(names))}: {escape(why)}")
    if answers:
        prose(out, f"answers: {escape(answers)}")
    if methods is not None:
        put(out, methods)
    show_next(out, *following)


def _method(choice: "MethodChoice") -> str:
    """Return the method and the reason for it, for `auto` by the sample that it chose by."""
    found = choice.sample
    if found is None:
        return f"{choice.method}: {choice.why}"
    if not found.sampled:
        return f"{choice.method} (least squared error)"
    read = f"{found.sampled} of {found.tensors} tensors sampled"
    counted = f"{100 * found.share:.1f} % of its groups lie on a 4-bit grid ({read})"
    if choice.method == "lattice":
        return f"{choice.method} (the source's own grid): source trained for 4 bits (QAT), {counted}"
    sign = "too few signs" if found.share >= _SOME else "no sign"
    return f"{choice.method} (least squared error), as the source shows {sign} of QAT: {counted}"


def _kept(done: "Summary") -> str:
    """Return words on the largest role that stays as it was, if it makes up much of the output."""
    same = [row for row in done.sizes if row.after and row.before == row.after]
    most = max(same, key=lambda row: row.after, default=None)
    if most is None or most.after < _MUCH * done.after:
        return ""
    return f"; {size(most.after)} of it is the {str(most.role).replace('_', ' ')}, which stays as it is"


def answers(
    done: "Summary", metrics: Mapping[str, Any] | None, costs: Sequence["MethodCost"], recipe: "Recipe"
) -> tuple[str, Table | None]:
    """Return a sentence on the distance of a conversion's answers from the original's, and a table of methods below it.

    Args:
        done: summary of the conversion.
        metrics: metrics of the verification at the end of the conversion; None without a verification.
        costs: costs of the method that ran, then of others.
        recipe: the recipe.
    """
    from g4convert.cli.show_methods import conclusion, expected, measured_on, others, verdict_legend

    loss = (metrics or {}).get("loss")
    if loss is not None:
        told = f"mean KL {loss['kl_mean']:.4g} nats to the original's over {loss['tokens']:,} predictions, "
        return f"{told}same top token {100 * loss['top1_agreement']:.1f} %", None
    told, method = "not measured, and the error of weights does not tell how good they are", done.choice.method
    if method == "lattice":
        return told, None
    if (table := others(costs, str(method))) is not None:
        drawn = conclusion(costs)
        kl = f"KL: mean KL to the original, {measured_on(costs)}"
        return f"{told}. {kl}. {verdict_legend()}{drawn and f'. {drawn}'}:", table
    has_experts = any(row.role == "experts" for row in done.sizes)
    known = expected(recipe, has_experts=has_experts)
    return f"{told}; {known}" if known else told, None


def _scales(gained: Mapping[str, Any]) -> str:
    """Return a sentence on the gain of training the scales."""
    before, after = gained["kl"]["0"], gained["kl"][f"{gained['share']:g}"]
    if not gained["share"]:
        return f"those of gptq: training gained nothing on {gained['held_out']} samples held out (KL {before:.4f})"
    way = "all" if gained["share"] == 1 else f"{gained['share']:g}"
    return f"trained, {way} of the way taken: KL {before:.4f} -> {after:.4f} on {gained['held_out']} samples held out"


def _percent(row: "ErrorRow") -> str:
    return f"{100 * row.relative_error:.2g} %"


def _errors(title: str, rows: Iterable["ErrorRow"]) -> Table:
    """Return a table of errors by name, with shares of groups on a lattice if there are such groups.

    Args:
        title: header of the names.
        rows: errors.
    """
    found = list(rows)
    columns = [title, "relative error", "SQNR dB", "groups"]
    lattice = any(row.stats.lattice_groups for row in found)
    if lattice:
        columns += ["on a lattice", "exact"]
    cells = []
    for row in found:
        groups = max(row.stats.groups, 1)
        name = row.name.removeprefix("model.language_model.")
        cell = [name, f"{row.relative_error:#.3g}", f"{row.sqnr_db:.1f}", f"{row.stats.groups:,}"]
        if lattice:
            cell += [f"{row.stats.lattice_groups / groups:.1%}", f"{row.stats.exact_groups / groups:.1%}"]
        cells.append(cell)
    return table(columns, cells, right=columns[1:])
