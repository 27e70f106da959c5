"""The closing card of a conversion: sizes, errors, engines that refuse it, the next command."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from g4convert.cli.tables import facts, put, table
from g4convert.gemma4 import Role
from g4convert.quantities import duration, plural, size

if TYPE_CHECKING:
    from g4convert.conversion.result import ErrorRow, Summary
    from g4convert.engines.verdicts import Verdict
    from g4convert.planning.costs import Cost

__all__ = ["answers", "calibrated", "summary"]


def summary(  # noqa: PLR0913 - what is said, and how much of it
    out: Console,
    done: "Summary",
    output: Path,
    *,
    tensors: bool,
    peak: int | None = None,
    refused: Sequence["Verdict"] = (),
    sound: bool = True,
    answers: str = "",
    calibrated: str = "",
) -> None:
    """Print the closing card: sizes, errors, worst tensors, engines that refuse the output, the command to serve it.

    Args:
        out: console that prints.
        done: summary of the conversion.
        output: directory of the output.
        tensors: print errors of all tensors, not only of the worst.
        peak: peak of memory in bytes; None if unknown.
        refused: verdicts of engines that cannot load the output.
        sound: False if a verification found a fault; then the card does not say how to serve the output.
        answers: sentence on the quality of answers, from `answers`.
        calibrated: sentence on methods that calibrate, from `calibrated`.
    """
    from g4convert.conversion.result import serve_command

    rows = {
        "written": str(output),
        "size": f"{size(done.before)} -> {size(done.after)} in {plural(done.files, 'file')}, "
        f"{done.bits_per_weight:.2f} bits per weight",
        "method": f"{done.choice.method}: {done.choice.why}",
    }
    if done.calibration is not None:
        given = done.calibration.get("ways") or {"weights by their inputs": done.calibration["weighted"]}
        ways = ", ".join(f"{count:,} {way.replace('_', '-')}" for way, count in given.items())
        rows["calibrated"] = f"on {done.calibration['samples']:,} x {done.calibration['length']:,} tokens: {ways}"
        if (gained := done.calibration.get("scales")) is not None:
            rows["scales"] = _scales(gained)
    if peak is not None:
        rows["peak memory"] = f"{size(peak)} to convert"
    if done.total.stats.groups:
        put(out, facts(rows))
        out.print()
        put(out, _errors("weights", [done.total, *done.roles], mean=done.mean_error))
        out.print()
        chosen = done.modules if tensors else done.worst
        put(out, _errors("all tensors" if tensors else "largest relative error", chosen))
        out.print(
            "\n[dim]relative error: sum of squared errors over sum of squared weights; large weights count most[/]"
        )
    else:
        put(out, facts({**rows, "method": "nothing is packed"}))
    if refused:
        names = dict.fromkeys(one.label if one.tp == 1 else f"{one.label} on {one.tp} GPUs" for one in refused)
        asked = " ".join(
            [quote(str(output)), *(f"--tp {tp}" for tp in dict.fromkeys(one.tp for one in refused) if tp > 1)]
        )
        why = f"`g4convert check {asked}` says why"
        out.print(f"refused by {escape(', '.join(names))}: {escape(why)}", soft_wrap=True)
    if answers:
        out.print(f"answers: {escape(answers)}", soft_wrap=True)
    if calibrated:
        out.print(f"with calibration: {escape(calibrated)}", soft_wrap=True)
    if sound and not any(one.engine == "vllm" for one in refused):
        drafter = any(row.role == Role.DRAFTER for row in done.sizes)
        out.print(f"next: {escape(serve_command(str(output), drafter=drafter))}", soft_wrap=True)


def answers(metrics: Mapping[str, Any] | None, output: Path, source: Path) -> str:
    """Return a sentence on the distance of a conversion's answers from the original's, or on how to measure it.

    Args:
        metrics: metrics of the verification at the end of the conversion; None without a verification.
        output: directory of the output.
        source: directory of the original.
    """
    loss = (metrics or {}).get("loss")
    if loss is None:
        command = f"g4convert verify {quote(str(output))} --reference {quote(str(source))} --level logits"
        return f"not measured: weight error does not tell how good they are; `{command}` does"
    return (
        f"mean KL {loss['kl_mean']:.4g} to the original's over {loss['tokens']:,} predictions, "
        f"same top token {100 * loss['top1_agreement']:.1f} %"
    )


def calibrated(done: "Summary", costs: Sequence["Cost"]) -> str:
    """Return a sentence on the cost of methods that calibrate, after a run without calibration; otherwise empty.

    Args:
        done: summary of the conversion; after method `lattice`, which keeps the source's codes, the result is empty.
        costs: costs of the method that ran, then of the others.
    """
    others = [one for one in costs[1:] if one.tokens]
    if done.calibration is not None or done.choice.method == "lattice" or not others:
        return ""
    took = "; ".join(
        f"--method {one.method} would take about {duration(one.seconds)} here, {size(one.memory)} of memory and "
        f"{size(one.disk)} of disk"
        for one in others
    )
    known = [(str(one.method), one.kl) for one in (costs[0], *others) if one.kl is not None]
    if len(known) < len(others) + 1:
        return took
    (own, least), *better = known
    gains = ", ".join(f"{method} {kl:.2f}" for method, kl in better)
    return f"{took}. On a real 270M model {own} had a mean KL of {least:.2f}, {gains}"


def _scales(gained: Mapping[str, Any]) -> str:
    """Return a sentence on the gain of training the scales."""
    before, after = gained["kl"]["0"], gained["kl"][f"{gained['share']:g}"]
    if not gained["share"]:
        return f"those of gptq: training gained nothing on {gained['held_out']} samples held out (KL {before:.4f})"
    way = "all" if gained["share"] == 1 else f"{gained['share']:g}"
    return f"trained, {way} of the way taken: KL {before:.4f} -> {after:.4f} on {gained['held_out']} samples held out"


def _errors(title: str, rows: Iterable["ErrorRow"], *, mean: float | None = None) -> Table:
    """Return a table of errors by name, with shares of groups on a lattice if there are such groups."""
    found = list(rows)
    columns = [title, "relative error", "SQNR dB", "groups"]
    lattice = any(row.stats.lattice_groups for row in found)
    if lattice:
        columns += ["on a lattice", "exact"]
    cells = []
    for row in found:
        groups = max(row.stats.groups, 1)
        name = row.name.removeprefix("model.language_model.")
        cell = [name, f"{row.relative_error:.5f}", f"{row.sqnr_db:.1f}", f"{row.stats.groups:,}"]
        if lattice:
            cell += [f"{row.stats.lattice_groups / groups:.1%}", f"{row.stats.exact_groups / groups:.1%}"]
        cells.append(cell)
    if mean:
        modules = ["mean of modules", f"{mean:.5f}", f"{-10 * math.log10(mean):.1f}"]
        cells.insert(1, [*modules, *[""] * (len(columns) - len(modules))])
    return table(columns, cells, right=columns[1:])
