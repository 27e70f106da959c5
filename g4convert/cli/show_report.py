"""Printing of a verification: the verdict, the faults, the measurements, the costliest modules, the passed checks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from g4convert.cli.next_steps import recipe_of
from g4convert.cli.tables import prose, put, table, without
from g4convert.names import Name
from g4convert.quantities import plural
from g4convert.report import Finding, Report, Severity, grouped
from g4convert.verification.labels import (
    ALIKE,
    COMPARED,
    COSTLY,
    DIFFERS,
    EQUAL,
    LEGEND,
    LEGEND_OF_EXPERTS,
    LOWER_BOUND,
    METRICS,
    SWAPPED,
    TITLES,
    UNTOLD,
    group_by_kind,
)

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {
    Severity.FAIL: "bold red",
    Severity.INCONCLUSIVE: "bold yellow",
    Severity.WARN: "yellow",
    Severity.INFO: "dim",
    Severity.PASS: "green",
}
_TOLD = (Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN)
_NOISE = "by rounding alone"
"""Header of the column with the noise floor."""
_SQNR = "SQNR of outputs, dB"
_LEAST = 2
"""Least share of a loss, in percent, for which a module is listed without -v."""
_SMALL = 1e-3
"""Numbers below are written with an exponent."""
_MOST = 12
"""Largest number of findings of one severity that is printed without -v."""


def report(out: "Console", found: Report, *, strict: bool, verbose: bool, verdicts: str = "") -> None:
    """Print a report; passed checks and notes only with `verbose`.

    Args:
        out: console that prints.
        found: the report.
        strict: warnings count as failures.
        verbose: print every finding.
        verdicts: engines that load it, for the verdict, after a table of them; empty for the levels that ran.
    """
    verdict(out, found, strict=strict, words=verdicts)
    for severity in (*_TOLD, Severity.INFO, Severity.PASS) if verbose else _TOLD:
        told = found.of(severity) if verbose else (*_in_tables(found, severity), *_apart(found, severity))
        if verdicts and severity is Severity.WARN and not verbose:
            told = tuple(one for one in told if one.level != "engines")  # the table has them
        _findings(out, told, severity, verbose=verbose)
    for kind in TITLES:
        if kind in found.metrics:
            _comparison(out, found, kind, verbose=verbose)
    if "engine" in found.metrics:
        out.print("\nthe engine's log-probabilities against those of the dequantized weights")
        columns = ("probes", "tokens", "mean difference", "largest", "noise floor", "same top token", "mean KL")
        put(out, table(columns, _served(found.metrics["engine"]["buckets"]), right=columns[1:]))
    for kind, blamed in found.metrics.get("blame", {}).items():
        prose(out, f"\n{COSTLY[kind]}")
        brief = kind == "loss" and not verbose
        prose(out, f"[dim]{escape(_how(blamed, kind, brief=brief))}[/]")
        put(out, _blame(blamed["rows"], brief=brief))
        if kind == "loss":
            _keep(out, found, blamed["rows"])
    if found.verdict is not Severity.PASS and not verbose:
        prose(out, "\n-v lists every check and note")


def _comparison(out: "Console", found: Report, kind: str, *, verbose: bool) -> None:
    """Print the table of a comparison's metrics; of a path that passes, one sentence."""
    values = found.metrics[kind]
    bound = f" ({LOWER_BOUND})" if values["lower_bound"] else ""
    judged = {one.severity for one in found.findings if _metric(found, one)[0] == kind}
    if kind == "parity" and judged <= {Severity.PASS} and not verbose:
        same = values["kl_max"] == 0 and values["logit_max_diff"] == 0
        prose(out, f"\n{TITLES[kind]}: {escape((EQUAL if same else ALIKE).format(**values))}")
        return
    prose(out, f"\n{TITLES[kind]}: {COMPARED[kind]}{bound}")
    columns = ("metric", "value", "limits", "", _NOISE)
    put(out, table(*without(columns, _measured(found, kind), () if verbose else (_NOISE,)), right=("value", _NOISE)))
    if kind == "loss":
        experts = "" if math.isnan(values.get("router_jaccard_min", math.nan)) else LEGEND_OF_EXPERTS
        prose(out, f"[dim]{escape(LEGEND + experts)}[/]")


def verdict(out: "Console", found: Report, *, strict: bool, words: str = "") -> None:
    """Print the verdict in one line: the output, its reference, and the result in words or the levels that ran."""
    against = f" against {escape(found.reference)}" if found.reference else ""
    colour = _COLOURS[found.verdict]
    word = found.verdict.value.upper()
    failed = strict and found.exit_code(strict=True) == 1 and found.verdict is not Severity.FAIL
    note = " (fails, as warnings are strict)" if failed else ""
    said = escape(words) or _levels(found)
    if strict and not found.of(Severity.WARN):
        said += "; no warnings (--strict)"
    prose(out, f"[{colour}]{word}[/]{note} {escape(found.output)}{against}: {said}")


def _levels(found: Report) -> str:
    """Return the levels that ran; of a failed report those that failed, and which passed."""
    failed = [
        level for level in found.levels if any(one.code.startswith(f"{level}.") for one in found.of(Severity.FAIL))
    ]
    rest = ", ".join(level for level in found.levels if level not in failed)
    return f"{', '.join(failed)} ({rest} passed)" if failed and rest else ", ".join(found.levels)


def _in_tables(found: Report, severity: Severity) -> Iterator[Finding]:
    """Yield one finding for all metrics of a comparison that have this severity; its table has their numbers.

    Warnings beside failures of the same comparison stand in the table alone.
    """
    worse = found.of(Severity.FAIL) if severity is Severity.WARN else ()
    for kind in TITLES:
        if any(_metric(found, one)[0] == kind for one in worse):
            continue
        if alike := [one for one in found.of(severity) if _metric(found, one)[0] == kind]:
            remedy = next((one.remedy for one in alike if one.remedy), "")
            words = UNTOLD if severity is Severity.INCONCLUSIVE else DIFFERS
            told = f"{plural(len(alike), 'metric')} (table below)"
            yield Finding(f"logits.{kind}", severity, words[kind], told, "", remedy)


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
            prose(out, f"[{_COLOURS[severity]}]{severity}[/] [dim]{one.code}[/] {escape(one.line)}")
        first, *ways = remedy.split("\n")
        for line in (*([first] if first else []), *(f"- {way}" for way in ways)):
            prose(out, f"[dim]{escape(line)}[/]", indent=5)
    if len(lines) > len(shown):
        out.print(f"and {len(lines) - len(shown)} more {severity} (-v lists all)", soft_wrap=True)


def _keep(out: "Console", found: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the recipe that keeps the costliest layer in bf16, and whether that is too little."""
    costly = next((row for row in rows if row["kind"] == "layer"), None)
    if costly is not None:
        layer, base = Name(costly["module"]).last, recipe_of(found.output)
        these = "these two lines" if base else "this rule"
        prose(out, f"to keep layer {layer} in bf16, `quantize -r FILE.yaml` with {these} in it:")
        lines = [f"extends: {base}"] * bool(base) + [f"rules: [{{layers: {layer}, bits: 16}}]"]
        put(out, Padding(Text("\n".join(lines)), (0, 0, 0, 2)))
        for way in found.metrics.get("advice", ())[:1]:
            from g4convert.verification.logits.advice import judged_kl

            high = judged_kl(found.metrics["loss"])
            if (left := (1 - costly["share"]) * high) > way["limit"]:
                told = (
                    f"the mean KL's upper end would be about {left:.2g}, not {high:.2g}; up to {way['limit']:g} passes"
                )
                prose(out, f"this alone is not enough: {told}")


def _measured(found: Report, kind: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each metric that the profile judges."""
    floor = found.metrics["floor"]["values"]
    values = found.metrics[kind]
    for one in found.findings:
        of, name = _metric(found, one)
        if of == kind:
            noise = _number(floor.get(name), digits=2)
            yield METRICS.get(name, name), _number(values[name]), one.expected, one.severity.value, noise
            if name == "kl_mean" and not math.isnan(values["kl_high"]):
                ends = f"{_number(values['kl_low'], digits=2)} to {_number(values['kl_high'], digits=2)}"
                yield "  95 % interval", ends, "its upper end is judged", "", ""
            if name == "kl_mean" and of == "loss" and noise:
                yield f"  by {found.metrics['dtype']} rounding", noise, "a KL below this means nothing", "", ""


def _served(buckets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of probe that an engine answered, with the noise floor of the mean difference."""
    for one in buckets:
        numbers = (one["mean"], one["largest"], one["floor_mean"])
        agreed = f"{100 * one['top1_agreement']:.1f} %"
        yield one["name"], f"{one['tokens']:,}", *map(_number, numbers), agreed, _number(one["kl_mean"])


def _how(blamed: Mapping[str, Any], kind: str, *, brief: bool) -> str:
    """Return how a table of blame is measured."""
    probes = plural(len(blamed.get("probes", ())), "prompt")
    sample = (
        f"the {probes} with the largest KL, {plural(blamed['predictions'], 'prediction')}"
        if blamed.get("predictions")
        else "all prompts"
    )
    mean, left = ("", "") if brief else (f" of {_number(blamed['kl'])}", ", and the KL that is left")
    return (
        f"Measured on {sample}. Each row: how much of the mean KL{mean} goes away if that part alone gets "
        f"{SWAPPED[kind]}{left}. Parts interact, so rows do not add up to 100 %."
    )


def _blame(rows: Sequence[Mapping[str, Any]], *, brief: bool) -> Table:
    """Return a table of shares of the loss, rows grouped by kind; with `brief`, shares alone, of the costly."""
    cells: list[Sequence[str]] = []
    for heading, alike in group_by_kind(row for row in rows if not brief or 100 * row["share"] >= _LEAST):
        indent = "  " if heading else ""
        cells += [(heading, *[""] * 4)] if heading else []
        for row in alike[:_MOST]:
            share, sqnr = f"{round(100 * row['share'])} %", "" if math.isnan(row["sqnr"]) else f"{row['sqnr']:.1f}"
            cells.append((indent + row["module"], share, _number(row["kl"]), sqnr, row["note"]))
    columns = ("module", "removes", "KL left", _SQNR, "")
    return table(*without(columns, cells, ("KL left", _SQNR) if brief else ()), right=columns[1:4])


def _number(value: float | None, *, digits: int = 4) -> str:
    """Return a number in so many digits, `0.19` or `1.9e-4`; empty for none and nan."""
    if value is None or math.isnan(value):
        return ""
    if not 0 < abs(value) < _SMALL:
        return f"{value:.{digits}g}"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"
