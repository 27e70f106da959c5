"""The closing card of a conversion: sizes, errors, engines that refuse it, the next command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from g4convert.cli.next_steps import NextStep, show_next
from g4convert.cli.tables import make_facts, make_table, print_prose, print_trimmed
from g4convert.quantities import plural, size

if TYPE_CHECKING:
    from g4convert.conversion.result import ErrorRow, MethodChoice, Summary
    from g4convert.engines.verdicts import Verdict
    from g4convert.planning.costs import MethodCost
    from g4convert.planning.recipe import Recipe

_WORTH_NAMING = 1 / 4
"""Share of the output above which a role that is not packed is named."""
_SIGN_OF_QAT = 0.01
"""Share of groups on a 4-bit grid from which they are a sign of QAT."""


def print_summary(  # noqa: PLR0913 - what is said, and how much of it
    out: Console,
    summary: "Summary",
    output: Path,
    *,
    tensors: bool,
    peak: int | None = None,
    refused: Sequence["Verdict"] = (),
    answers: str = "",
    methods: Table | None = None,
    following: NextStep = NextStep(""),  # noqa: B008 - it cannot change
) -> None:
    """Print the closing card: sizes, errors, engines that refuse the output, the next command.

    Args:
        out: console that prints.
        summary: summary of the conversion.
        output: directory of the output.
        tensors: print tables of the errors, with all tensors, and the peak of memory.
        peak: peak of memory in bytes; None if unknown.
        refused: verdicts of engines that cannot load the output.
        answers: sentence on the quality of answers, and the table below it, from `answers`.
        methods: the table.
        following: what to do next.
    """
    is_packed = bool(summary.total.stats.groups)
    rows = {
        "written": str(output),
        "size": f"{size(summary.before)} -> {size(summary.after)} in {plural(summary.files, 'file')}, "
        f"{summary.bits_per_weight:.1f} bits per weight{_describe_largest_kept(summary)}",
        "method": _describe_method(summary.choice) if is_packed else "nothing is packed",
    }
    if summary.calibration is not None:
        rows |= _calibration_rows(summary.calibration)
    if peak is not None and tensors:
        rows["memory"] = f"{size(peak)} at the peak of the conversion"
    if is_packed:
        rows["error"] = _describe_error(summary)
    print_trimmed(out, make_facts(rows))
    if is_packed and tensors:
        _print_errors(out, summary)
    if refused:
        print_prose(out, escape(_refused_line(output, refused)))
    if answers:
        print_prose(out, f"answers: {escape(answers)}")
    if methods is not None:
        print_trimmed(out, methods)
    show_next(out, *following)


def _calibration_rows(calibration: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows about the texts, the ways in which weights were rounded, and the training of scales."""
    counts = calibration.get("ways") or {"weights by their inputs": calibration["weighted"]}
    ways = ", ".join(f"{count:,} {way.replace('_', '-')}" for way, count in counts.items() if count)
    judged = "; each weight took the way with the least error of its outputs" if "ways" in calibration else ""
    texts = f"{calibration['samples']:,} samples of {calibration['length']:,} tokens"
    rows = {"calibrated": f"on {texts}: {ways}{judged}"}
    if (training := calibration.get("scales")) is not None:
        rows["scales"] = _describe_scales(training)
    return rows


def _describe_error(summary: "Summary") -> str:
    """Describe the relative error of all packed weights, and of each role."""
    roles = ", ".join(f"{row.name} {_format_percent(row)}" for row in summary.roles)
    traded = "; calibration trades it for smaller errors of outputs" if summary.calibration is not None else ""
    what = f"squared errors over squared weights, mean over tensors{traded}"
    return f"{_format_percent(summary.total)} ({roles}): {what}"


def _print_errors(out: Console, summary: "Summary") -> None:
    """Print tables of the errors by role and by tensor."""
    out.print()
    print_trimmed(out, _make_errors_table("weights", [summary.total, *summary.roles]))
    out.print()
    print_trimmed(out, _make_errors_table("all tensors", summary.modules))
    out.print("\n[dim]relative error of several weights: the mean of theirs[/]")


def _refused_line(output: Path, refused: Sequence["Verdict"]) -> str:
    """Return the engines that cannot load the output, and the command that says why."""
    engines = dict.fromkeys(
        verdict.label if verdict.tp == 1 else f"{verdict.label} on {verdict.tp} GPUs" for verdict in refused
    )
    sizes = dict.fromkeys(verdict.tp for verdict in refused if verdict.tp > 1)
    command = " ".join(["g4convert check", quote(str(output)), *(f"--tp {tp}" for tp in sizes)])
    return f"not for {', '.join(engines)}: `{command}` says why"


def _describe_method(choice: "MethodChoice") -> str:
    """Return the method and the reason for it, for `auto` by the sample that it chose by."""
    sample = choice.sample
    if sample is None:
        return f"{choice.method}: {choice.why}"
    if not sample.sampled:
        return f"{choice.method} (least squared error)"
    extent = f"{sample.sampled} of {sample.tensors} tensors sampled"
    on_grid = f"{100 * sample.share:.1f} % of its groups lie on a 4-bit grid ({extent})"
    if choice.method == "lattice":
        return f"{choice.method} (the source's own grid): source trained for 4 bits (QAT), {on_grid}"
    sign = "too few signs" if sample.share >= _SIGN_OF_QAT else "no sign"
    return f"{choice.method} (least squared error), as the source shows {sign} of QAT: {on_grid}"


def _describe_largest_kept(summary: "Summary") -> str:
    """Name the largest role that stays as it was, if it makes up much of the output."""
    unchanged = [row for row in summary.sizes if row.after and row.before == row.after]
    largest = max(unchanged, key=lambda row: row.after, default=None)
    if largest is None or largest.after < _WORTH_NAMING * summary.after:
        return ""
    return f"; {size(largest.after)} of it is the {str(largest.role).replace('_', ' ')}, which stays as it is"


def describe_answers(
    summary: "Summary", metrics: Mapping[str, Any] | None, costs: Sequence["MethodCost"], recipe: "Recipe"
) -> tuple[str, Table | None]:
    """Describe the distance of a conversion's answers from the original's, and return a table of methods, if any.

    Args:
        summary: summary of the conversion.
        metrics: metrics of the verification at the end of the conversion; None without a verification.
        costs: costs of the method that ran, then of others.
        recipe: the recipe.
    """
    from g4convert.cli.show_methods import (
        describe_expected_loss,
        make_better_methods_table,
        name_measured_model,
    )

    loss = (metrics or {}).get("loss")
    if loss is not None:
        distance = f"mean KL {loss['kl_mean']:.4g} nats to the original's over {loss['tokens']:,} predictions"
        return f"{distance}, same top token {100 * loss['top1_agreement']:.1f} %", None
    if not summary.total.stats.groups:
        return "", None
    unknown, method = "not measured, and the error of weights does not tell how good they are", summary.choice.method
    if method == "lattice":
        return unknown, None
    if (table := make_better_methods_table(costs, str(method))) is not None:
        model = f"On another model, {name_measured_model(costs)}, with all its layers packed, these methods left:"
        return f"not measured yet. {model}", table
    has_experts = any(row.role == "experts" for row in summary.sizes)
    expected = describe_expected_loss(recipe, has_experts=has_experts)
    return f"{unknown}; {expected}" if expected else unknown, None


def _describe_scales(training: Mapping[str, Any]) -> str:
    """Describe the gain of training the scales."""
    before, after = training["kl"]["0"], training["kl"][f"{training['share']:g}"]
    samples = f"{training['held_out']} samples held out"
    if not training["share"]:
        return f"those of gptq: training gained nothing on {samples} (KL {before:.4f})"
    way = "all" if training["share"] == 1 else f"{training['share']:g}"
    return f"trained, {way} of the way taken: KL {before:.4f} -> {after:.4f} on {samples}"


def _format_percent(row: "ErrorRow") -> str:
    return f"{100 * row.relative_error:.2g} %"


def _make_errors_table(title: str, rows: Sequence["ErrorRow"]) -> Table:
    """Return a table of errors by name, with shares of groups on a lattice if there are such groups.

    Args:
        title: header of the names.
        rows: errors.
    """
    columns = [title, "relative error", "SQNR dB", "groups"]
    on_lattice = any(row.stats.lattice_groups for row in rows)
    if on_lattice:
        columns += ["on a lattice", "exact"]
    lines = []
    for row in rows:
        groups = max(row.stats.groups, 1)
        name = row.name.removeprefix("model.language_model.")
        line = [name, f"{row.relative_error:#.3g}", f"{row.sqnr_db:.1f}", f"{row.stats.groups:,}"]
        if on_lattice:
            line += [f"{row.stats.lattice_groups / groups:.1%}", f"{row.stats.exact_groups / groups:.1%}"]
        lines.append(line)
    return make_table(columns, lines, right=columns[1:])
