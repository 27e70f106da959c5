"""Printing of a verification: the verdict, the faults, the measurements, the costliest modules, the passed checks."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from g4convert.cli.tables import put, table
from g4convert.quantities import plural
from g4convert.report import Finding, Report, Severity, by_kind, grouped

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["report", "verdict"]

_COLOURS = {
    Severity.FAIL: "bold red",
    Severity.INCONCLUSIVE: "bold yellow",
    Severity.WARN: "yellow",
    Severity.INFO: "dim",
    Severity.PASS: "green",
}
_TOLD = (Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN)
_MOST = 12
"""Largest number of findings of one severity that is printed without -v."""
_TITLES = {"loss": "what four bits cost", "parity": "the path that runs"}
_BLAMED = {"loss": "which modules cost most (no fault of the file)", "parity": "who is to blame: the path that runs"}


def report(out: "Console", found: Report, *, strict: bool, verbose: bool) -> None:
    """Print a report; passed checks and notes only with `verbose`.

    Args:
        out: console that prints.
        found: the report.
        strict: warnings count as failures.
        verbose: print every finding.
    """
    verdict(out, found, strict=strict)
    for severity in (*_TOLD, Severity.INFO, Severity.PASS) if verbose else _TOLD:
        _findings(out, found.of(severity), severity, verbose=verbose)
    for kind, title in _TITLES.items():
        if kind in found.metrics:
            rows = [*_measured(found, kind)]
            out.print(f"\n{title}")
            put(out, table(("metric", "value", "noise floor", "limits", ""), rows, right=("value", "noise floor")))
    if "engine" in found.metrics:
        out.print("\nthe engine's log-probabilities against those of the dequantized weights")
        columns = ("probes", "tokens", "mean difference", "largest", "noise floor", "same top token", "mean KL")
        put(out, table(columns, _served(found.metrics["engine"]["buckets"]), right=columns[1:]))
    for kind, blamed in found.metrics.get("blame", {}).items():
        base = f"shares of the KL of {_number(blamed['kl'])} nats"
        if blamed.get("probes"):
            base += f" over {blamed['predictions']} predictions of the probes {' and '.join(blamed['probes'])}"
        out.print(f"\n{_BLAMED[kind]}; {escape(base)}", soft_wrap=True)
        put(out, _blame(blamed["rows"]))
    if not verbose:
        counts = Counter(finding.level for finding in found.of(Severity.PASS))
        passed = ", ".join(f"{level} {number}" for level, number in counts.items())
        notes = len(found.of(Severity.INFO))
        out.print(f"\npassed: {passed or 'nothing'}; {plural(notes, 'note')} (-v lists all)", soft_wrap=True)


def verdict(out: "Console", found: Report, *, strict: bool) -> None:
    """Print the verdict in one line: the output, its reference and the levels that ran."""
    against = f" against {escape(found.reference)}" if found.reference else ""
    colour = _COLOURS[found.verdict]
    word = found.verdict.value.upper()
    failed = strict and found.exit_code(strict=True) == 1 and found.verdict is not Severity.FAIL
    note = " (fails, as warnings are strict)" if failed else ""
    levels = ", ".join(found.levels)
    out.print(f"[{colour}]{word}[/]{note} {escape(found.output)}{against}: {levels}", soft_wrap=True)


def _findings(out: "Console", findings: Sequence[Finding], severity: Severity, *, verbose: bool) -> None:
    lines = list(findings) if verbose else list(grouped(findings))
    shown = lines if verbose else lines[:_MOST]
    if lines:
        out.print()
    for remedy, alike in groupby(shown, key=lambda one: one.remedy):  # printed once, below the last finding
        for one in alike:
            out.print(f"[{_COLOURS[severity]}]{severity}[/] [dim]{one.code}[/] {escape(one.line)}", soft_wrap=True)
        if remedy:
            out.print(f"     [dim]{escape(remedy)}[/]", soft_wrap=True)
    if len(lines) > len(shown):
        out.print(f"and {len(lines) - len(shown)} more {severity} (-v lists all)", soft_wrap=True)


def _measured(found: Report, kind: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each metric that the profile judges."""
    code = f"logits.{kind}."
    floor = found.metrics["floor"]["values"]
    values = found.metrics[kind]
    for one in found.findings:
        name = one.code.removeprefix(code)
        if one.code.startswith(code) and not math.isnan(values.get(name, math.nan)):
            interval = ""
            if name == "kl_mean" and not math.isnan(values["kl_high"]):
                interval = f" [{_number(values['kl_low'])}, {_number(values['kl_high'])}]"
            yield name, _number(values[name]) + interval, _number(floor.get(name)), one.expected, one.severity.value


def _served(buckets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of probe that an engine answered, with the noise floor of the mean difference."""
    for one in buckets:
        numbers = (one["mean"], one["largest"], one["floor_mean"])
        agreed = f"{100 * one['top1_agreement']:.1f} %"
        yield one["name"], f"{one['tokens']:,}", *map(_number, numbers), agreed, _number(one["kl_mean"])


def _blame(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of shares of the loss, rows grouped by kind."""
    cells = []
    for heading, alike in by_kind(rows):
        for number, row in enumerate(alike[:_MOST]):
            share, sqnr = f"{round(100 * row['share'])} %", _number(row["sqnr"], ".1f")
            cells.append((heading * (number == 0), row["module"], share, _number(row["kl"]), sqnr, row["note"]))
    columns = ("", "module", "share", "KL without", "SQNR dB", "")
    return table(columns, cells, right=columns[2:5])


def _number(value: float | None, spec: str = ".4g") -> str:
    return "" if value is None or math.isnan(value) else format(value, spec)
