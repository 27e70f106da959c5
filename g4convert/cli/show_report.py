"""Printing of a verification: the verdict, the faults, the measurements, the costliest modules, the passed checks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from g4convert.cli.next_steps import find_recorded_base
from g4convert.cli.tables import drop_columns, make_table, print_prose, print_trimmed
from g4convert.names import Name
from g4convert.quantities import plural
from g4convert.report import Finding, Report, Severity, join_alike
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
_ALWAYS_PRINTED = (Severity.FAIL, Severity.INCONCLUSIVE, Severity.WARN)
_NOISE = "by rounding alone"
"""Header of the column with the noise floor."""
_SQNR = "SQNR of outputs, dB"
_LEAST_SHARE = 2
"""Least share of a loss, in percent, for which a module is listed without -v."""
_EXPONENT_BELOW = 1e-3
"""Numbers below are written with an exponent."""
_NOTED = "engines.files"
"""Code of notes that are printed without -v, too."""
_SCORED = "logits.answers"
"""Code of the note on whose answers are scored, which a loss depends on."""
_MAX_ROWS = 12
"""Largest number of findings of one severity that is printed without -v."""


def print_report(out: "Console", report: Report, *, strict: bool, verbose: bool, verdicts: str = "") -> None:
    """Print a report; passed checks and most notes only with `verbose`.

    Args:
        out: console that prints.
        report: the report.
        strict: warnings count as failures.
        verbose: print every finding.
        verdicts: engines that load it, for the verdict, after a table of them; empty for the levels that ran.
    """
    print_verdict(out, report, strict=strict, words=verdicts)
    for severity in (*_ALWAYS_PRINTED, Severity.INFO, Severity.PASS) if verbose else _ALWAYS_PRINTED:
        findings = (
            report.of(severity)
            if verbose
            else (*_findings_in_tables(report, severity), *_findings_apart(report, severity))
        )
        if verdicts and severity is Severity.WARN and not verbose:
            findings = tuple(finding for finding in findings if finding.level != "engines")  # the table has them
        _print_findings(out, findings, severity, verbose=verbose)
    if not verbose:
        notes = [finding for finding in report.of(Severity.INFO) if finding.code == _NOTED]
        _print_findings(out, notes, Severity.INFO, verbose=False)
    for comparison in TITLES:
        if comparison in report.metrics:
            _print_comparison(out, report, comparison, verbose=verbose)
    if "engine" in report.metrics:
        out.print("\nthe engine's log-probabilities against those of the dequantized weights")
        columns = ("probes", "tokens", "mean difference", "largest", "noise floor", "same top token", "mean KL")
        print_trimmed(out, make_table(columns, _engine_rows(report.metrics["engine"]["buckets"]), right=columns[1:]))
    for comparison, blamed in report.metrics.get("blame", {}).items():
        print_prose(out, f"\n{COSTLY[comparison]}")
        brief = comparison == "loss" and not verbose
        print_prose(out, f"[dim]{escape(_explain_blame(blamed, comparison, brief=brief))}[/]")
        print_trimmed(out, _make_blame_table(blamed["rows"], brief=brief))
        if comparison == "loss":
            _print_rule_to_keep(out, report, blamed["rows"])
    if report.verdict is not Severity.PASS and not verbose:
        print_prose(out, "\n-v lists every check and note")


def _print_comparison(out: "Console", report: Report, comparison: str, *, verbose: bool) -> None:
    """Print the table of a comparison's metrics; of a path that passes, one sentence."""
    values = report.metrics[comparison]
    note = f" ({LOWER_BOUND})" if values["lower_bound"] else ""
    judged = {finding.severity for finding in report.findings if _find_metric(report, finding)[0] == comparison}
    if comparison == "parity" and judged <= {Severity.PASS} and not verbose:
        is_equal = values["kl_max"] == 0 and values["logit_max_diff"] == 0
        print_prose(out, f"\n{TITLES[comparison]}: {escape((EQUAL if is_equal else ALIKE).format(**values))}")
        return
    print_prose(out, f"\n{TITLES[comparison]}: {COMPARED[comparison]}{note}")
    columns = ("metric", "value", "limits", "", _NOISE)
    print_trimmed(
        out,
        make_table(
            *drop_columns(columns, _metric_rows(report, comparison), () if verbose else (_NOISE,)),
            right=("value", _NOISE),
        ),
    )
    if comparison == "loss":
        experts = "" if math.isnan(values.get("router_jaccard_min", math.nan)) else LEGEND_OF_EXPERTS
        print_prose(out, f"[dim]{escape(LEGEND + experts)}[/]")
        for scored in (finding for finding in report.findings if finding.code == _SCORED and not verbose):
            print_prose(out, escape(scored.line))


def print_verdict(out: "Console", report: Report, *, strict: bool, words: str = "") -> None:
    """Print the verdict in one line: the output, its reference, and `words` or the levels that ran."""
    against = f" against {escape(report.reference)}" if report.reference else ""
    colour = _COLOURS[report.verdict]
    word = report.verdict.value.upper()
    fails_by_strict = strict and report.exit_code(strict=True) == 1 and report.verdict is not Severity.FAIL
    note = " (fails, as warnings are strict)" if fails_by_strict else ""
    summary = escape(words) or _describe_levels(report)
    if strict and not report.of(Severity.WARN):
        summary += "; no warnings (--strict)"
    print_prose(out, f"[{colour}]{word}[/]{note} {escape(report.output)}{against}: {summary}")


def _describe_levels(report: Report) -> str:
    """Return the levels that ran; of a failed report those that failed, and which passed."""
    failed = [
        level
        for level in report.levels
        if any(finding.code.startswith(f"{level}.") for finding in report.of(Severity.FAIL))
    ]
    rest = ", ".join(level for level in report.levels if level not in failed)
    return f"{', '.join(failed)} ({rest} passed)" if failed and rest else ", ".join(report.levels)


def _findings_in_tables(report: Report, severity: Severity) -> Iterator[Finding]:
    """Yield one finding for all metrics of a comparison that have this severity; its table has their numbers.

    Warnings beside failures of the same comparison stand in the table alone.
    """
    worse = report.of(Severity.FAIL) if severity is Severity.WARN else ()
    for comparison in TITLES:
        if any(_find_metric(report, finding)[0] == comparison for finding in worse):
            continue
        if alike := [finding for finding in report.of(severity) if _find_metric(report, finding)[0] == comparison]:
            remedy = next((finding.remedy for finding in alike if finding.remedy), "")
            words = UNTOLD if severity is Severity.INCONCLUSIVE else DIFFERS
            metrics = f"{plural(len(alike), 'metric')} (table below)"
            yield Finding(f"logits.{comparison}", severity, words[comparison], metrics, "", remedy)


def _findings_apart(report: Report, severity: Severity) -> Iterator[Finding]:
    """Yield the findings of a severity that are in no table of metrics."""
    yield from (finding for finding in report.of(severity) if not _find_metric(report, finding)[0])


def _find_metric(report: Report, finding: Finding) -> tuple[str, str]:
    """Return the comparison and the metric of a finding that a table of metrics shows; empty texts for others."""
    owner, name = Name(finding.code).cut()
    values = report.metrics.get(owner.last, {}) if owner.last in TITLES else {}
    return ("", "") if math.isnan(values.get(name, math.nan)) else (owner.last, name)


def _print_findings(out: "Console", findings: Sequence[Finding], severity: Severity, *, verbose: bool) -> None:
    joined = list(findings) if verbose else list(join_alike(findings))
    shown = joined if verbose else joined[:_MAX_ROWS]
    if joined:
        out.print()
    for remedy, alike in groupby(shown, key=lambda finding: finding.remedy):  # printed once, below the last finding
        for finding in alike:
            print_prose(out, f"[{_COLOURS[severity]}]{severity}[/] [dim]{finding.code}[/] {escape(finding.line)}")
        first, *ways = remedy.split("\n")
        for line in (*([first] if first else []), *(f"- {way}" for way in ways)):
            print_prose(out, f"[dim]{escape(line)}[/]", indent=5)
    if len(joined) > len(shown):
        out.print(f"and {len(joined) - len(shown)} more {severity} (-v lists all)", soft_wrap=True)


def _print_rule_to_keep(out: "Console", report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the recipe that keeps the costliest layer in bf16, and whether that is too little."""
    costly = next((row for row in rows if row["kind"] == "layer"), None)
    if costly is not None:
        layer, (base, options) = Name(costly["module"]).last, find_recorded_base(report.output) or ("", [])
        these, command = "these two lines" if base else "this rule", " ".join(["quantize -r FILE.yaml", *options])
        print_prose(out, f"to keep layer {layer} in bf16, `{escape(command)}` with {these} in it:")
        extends = f"extends: {base}\n" if base else ""
        rule = f"rules: [{{layers: {layer}, bits: 16}}]"
        print_trimmed(out, Padding(Text(extends + rule), (0, 0, 0, 2)))
        for advice in report.metrics.get("advice", ())[:1]:
            from g4convert.verification.logits.advice import judged_kl

            high = judged_kl(report.metrics["loss"])
            left, limit = (1 - costly["share"]) * high, advice["limit"]
            if left > limit:
                ends = f"the mean KL's upper end would be about {left:.2g}, not {high:.2g}; up to {limit:g} passes"
                print_prose(out, f"this alone is not enough: {ends}")


def _metric_rows(report: Report, comparison: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each metric that the profile judges."""
    floor = report.metrics["floor"]["values"]
    values = report.metrics[comparison]
    for finding in report.findings:
        owner, name = _find_metric(report, finding)
        if owner == comparison:
            noise = _format_number(floor.get(name), digits=2)
            yield METRICS.get(name, name), _format_number(values[name]), finding.expected, finding.severity.value, noise
            if name == "kl_mean" and not math.isnan(values["kl_high"]):
                ends = f"{_format_number(values['kl_low'], digits=2)} to {_format_number(values['kl_high'], digits=2)}"
                yield "  95 % interval", ends, "its upper end is judged", "", ""
            if name == "kl_mean" and owner == "loss" and noise:
                yield f"  by {report.metrics['dtype']} rounding", noise, "a KL below this means nothing", "", ""


def _engine_rows(buckets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of probe that an engine answered, with the noise floor of the mean difference."""
    for bucket in buckets:
        numbers = (bucket["mean"], bucket["largest"], bucket["floor_mean"])
        agreed = f"{100 * bucket['top1_agreement']:.1f} %"
        yield (
            bucket["name"],
            f"{bucket['tokens']:,}",
            *map(_format_number, numbers),
            agreed,
            _format_number(bucket["kl_mean"]),
        )


def _explain_blame(blamed: Mapping[str, Any], kind: str, *, brief: bool) -> str:
    """Explain how a table of blame was measured."""
    probes = plural(len(blamed.get("probes", ())), "prompt")
    sample = (
        f"the {probes} with the largest KL, {plural(blamed['predictions'], 'prediction')}"
        if blamed.get("predictions")
        else "all prompts"
    )
    mean, rest = ("", "") if brief else (f" of {_format_number(blamed['kl'])}", ", and the KL that is left")
    return (
        f"Measured on {sample}. Each row: how much of the mean KL{mean} goes away if that part alone gets "
        f"{SWAPPED[kind]}{rest}. Parts interact, so rows do not add up to 100 %."
    )


def _make_blame_table(rows: Sequence[Mapping[str, Any]], *, brief: bool) -> Table:
    """Return a table of shares of the loss, rows grouped by kind; with `brief`, shares alone, of the costly."""
    cells: list[Sequence[str]] = []
    for heading, group in group_by_kind(row for row in rows if not brief or 100 * row["share"] >= _LEAST_SHARE):
        indent = "  " if heading else ""
        cells += [(heading, *[""] * 4)] if heading else []
        for row in group[:_MAX_ROWS]:
            share, sqnr = f"{round(100 * row['share'])} %", "" if math.isnan(row["sqnr"]) else f"{row['sqnr']:.1f}"
            cells.append((indent + row["module"], share, _format_number(row["kl"]), sqnr, row["note"]))
    columns = ("module", "removes", "KL left", _SQNR, "")
    return make_table(*drop_columns(columns, cells, ("KL left", _SQNR) if brief else ()), right=columns[1:4])


def _format_number(value: float | None, *, digits: int = 4) -> str:
    """Format a number with `digits` digits, as `0.19` or `1.9e-4`; empty for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    if not 0 < abs(value) < _EXPONENT_BELOW:
        return f"{value:.{digits}g}"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"
