"""Printing of a verification: the verdict, the faults, the measurements, the costliest modules, the passed checks."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from g4convert.cli.tables import put, table
from g4convert.names import Name
from g4convert.quantities import plural
from g4convert.report import Finding, Report, Severity, grouped
from g4convert.verification.labels import COMPARED, COSTLY, DIFFERS, LOWER_BOUND, METRICS, SWAPPED, TITLES, by_kind

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
_NOT_COMPARED = {
    (): "no weight was compared: `--reference MODEL` compares every weight with the original, and `--level logits` the "
    "answers, too",
    ("weights",): "the answers were not compared: `--level logits` does",
    ("logits",): "no weight was compared: `--reference MODEL` with the original itself does",
}
"""Comparisons that a verification left out, by the levels that ran besides `static`."""
_MOST = 12
"""Largest number of findings of one severity that is printed without -v."""


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
        told = found.of(severity) if verbose else [*_in_tables(found, severity), *_apart(found, severity)]
        _findings(out, told, severity, verbose=verbose)
    for kind, title in TITLES.items():
        if kind in found.metrics:
            bound = f" ({LOWER_BOUND})" if found.metrics[kind]["lower_bound"] else ""
            out.print(f"\n{title}: {COMPARED[kind]}{bound}", soft_wrap=True)
            rows = [*_measured(found, kind)]
            put(out, table(("metric", "value", "floor", "limits", ""), rows, right=("value", "floor")))
    if "engine" in found.metrics:
        out.print("\nthe engine's log-probabilities against those of the dequantized weights")
        columns = ("probes", "tokens", "mean difference", "largest", "noise floor", "same top token", "mean KL")
        put(out, table(columns, _served(found.metrics["engine"]["buckets"]), right=columns[1:]))
    for kind, blamed in found.metrics.get("blame", {}).items():
        out.print(f"\n{COSTLY[kind]}\n[dim]{escape(_how(blamed, kind))}[/]", soft_wrap=True)
        put(out, _blame(blamed["rows"]))
    if found.levels[:1] == ("static",) and (rest := _NOT_COMPARED.get(found.levels[1:])):
        out.print(f"\n{rest}", soft_wrap=True)
    if not verbose:
        counts = Counter(finding.level for finding in found.of(Severity.PASS))
        passed = ", ".join(f"{level} {number}" for level, number in counts.items())
        notes = len(found.of(Severity.INFO))
        rest = f"; {plural(notes, 'note')}" if notes else ""
        out.print(f"\nchecks passed: {passed or 'none'}{rest} (-v lists all)", soft_wrap=True)


def verdict(out: "Console", found: Report, *, strict: bool) -> None:
    """Print the verdict in one line: the output, its reference and the levels that ran."""
    against = f" against {escape(found.reference)}" if found.reference else ""
    colour = _COLOURS[found.verdict]
    word = found.verdict.value.upper()
    failed = strict and found.exit_code(strict=True) == 1 and found.verdict is not Severity.FAIL
    note = " (fails, as warnings are strict)" if failed else ""
    levels = ", ".join(found.levels)
    out.print(f"[{colour}]{word}[/]{note} {escape(found.output)}{against}: {levels}", soft_wrap=True)


def _in_tables(found: Report, severity: Severity) -> Iterator[Finding]:
    """Yield one finding for all metrics of a comparison that have this severity; its table has their numbers."""
    for kind in TITLES:
        if alike := [one for one in found.of(severity) if _metric(found, one)[0] == kind]:
            names = ", ".join(METRICS.get(_metric(found, one)[1], one.code) for one in alike)
            remedy = next((one.remedy for one in alike if one.remedy), "")
            yield Finding(f"logits.{kind}", severity, DIFFERS[kind], f"{names} (table below)", "", remedy)


def _apart(found: Report, severity: Severity) -> Iterator[Finding]:
    """Yield the findings of a severity that are in no table of metrics."""
    yield from (one for one in found.of(severity) if not _metric(found, one)[0])


def _metric(found: Report, finding: Finding) -> tuple[str, str]:
    """Return the comparison and the metric of a finding that a table of metrics shows; empty texts for others."""
    owner, name = Name(finding.code).cut()
    values = found.metrics.get(owner.last, {}) if owner.last in TITLES else {}
    return ("", "") if math.isnan(values.get(name, math.nan)) else (owner.last, name)


def _findings(out: "Console", findings: Sequence[Finding], severity: Severity, *, verbose: bool) -> None:
    lines = list(findings) if verbose else list(grouped(findings))
    shown = lines if verbose else lines[:_MOST]
    if lines:
        out.print()
    for remedy, alike in groupby(shown, key=lambda one: one.remedy):  # printed once, below the last finding
        for one in alike:
            out.print(f"[{_COLOURS[severity]}]{severity}[/] [dim]{one.code}[/] {escape(one.line)}", soft_wrap=True)
        first, *ways = remedy.split("\n")
        for line in (*([first] if first else []), *(f"- {way}" for way in ways)):
            out.print(f"     [dim]{escape(line)}[/]", soft_wrap=True)
    if len(lines) > len(shown):
        out.print(f"and {len(lines) - len(shown)} more {severity} (-v lists all)", soft_wrap=True)


def _measured(found: Report, kind: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each metric that the profile judges."""
    floor = found.metrics["floor"]["values"]
    values = found.metrics[kind]
    for one in found.findings:
        of, name = _metric(found, one)
        if of == kind:
            numbers = (_number(values[name]), _number(floor.get(name), ".2g"))
            yield METRICS.get(name, name), *numbers, one.expected, one.severity.value
            if name == "kl_mean" and not math.isnan(values["kl_high"]):
                ends = f"{_number(values['kl_low'], '.2g')} to {_number(values['kl_high'], '.2g')}"
                yield "  95 % interval", ends, "", "its upper end is judged", ""


def _served(buckets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of probe that an engine answered, with the noise floor of the mean difference."""
    for one in buckets:
        numbers = (one["mean"], one["largest"], one["floor_mean"])
        agreed = f"{100 * one['top1_agreement']:.1f} %"
        yield one["name"], f"{one['tokens']:,}", *map(_number, numbers), agreed, _number(one["kl_mean"])


def _how(blamed: Mapping[str, Any], kind: str) -> str:
    """Return how a table of blame is measured."""
    predictions = f"{blamed['predictions']} predictions" if blamed.get("predictions") else "all predictions"
    probes = f" of the probes {' and '.join(blamed['probes'])}" if blamed.get("probes") else ""
    return (
        f"Measured on {predictions}{probes}, whose mean KL is {_number(blamed['kl'])} nats. Each row swaps one module "
        f"for {SWAPPED[kind]}: the share of that KL that goes, and the KL that stays. Shares need not add "
        "up to 100 %."
    )


def _blame(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of shares of the loss, rows grouped by kind."""
    cells: list[Sequence[str]] = []
    for heading, alike in by_kind(rows):
        indent = "  " if heading else ""
        cells += [(heading, *[""] * 4)] if heading else []
        for row in alike[:_MOST]:
            share, sqnr = f"{round(100 * row['share'])} %", _number(row["sqnr"], ".1f")
            cells.append((indent + row["module"], share, _number(row["kl"]), sqnr, row["note"]))
    columns = ("module", "share", "KL that stays", "SQNR dB", "")
    return table(columns, cells, right=columns[1:4])


def _number(value: float | None, spec: str = ".4g") -> str:
    return "" if value is None or math.isnan(value) else format(value, spec)
