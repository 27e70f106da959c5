"""What engines make of a checkpoint, as a table: numbers of GPUs that are alike are one row."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from g4convert import show_report
from g4convert.engines.fit import Loads, Verdict
from g4convert.tables import facts, put, table

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.check import Checked

__all__ = ["checked", "verdicts"]

_SOURCE: Final = re.compile(r" \([\w/]+\.py:[^)]*\)")
"""Where in an engine it stands."""
_MOST: Final = 3
"""Reasons in a row that are printed without -v."""


def verdicts(out: "Console", found: Iterable[Verdict], *, verbose: bool = False) -> None:
    """Print the verdicts, then what to do about those that say no.

    Args:
        out: where to.
        found: in the order of engines and sizes.
        verbose: what else may be of interest, too.
    """
    given = list(found)
    rows = []
    told = ""
    for same in _alike(given):
        first = same[0]
        sizes = "any" if first.engine == "transformers" else ", ".join(str(one.tp) for one in same)
        name, told = "" if first.label == told else first.label.replace(" to ", "-"), first.label
        rows.append((name, sizes, first.loads.value, "; ".join(_reasons(first, verbose=verbose))))
    put(out, table(("engine", "GPUs", "loads", ""), rows))
    refused = {one.engine: one for one in reversed(given) if one.loads is Loads.NO}
    remedies: dict[str, dict[str, None]] = {}
    for engine in dict.fromkeys(one.engine for one in given if one.engine in refused):
        for remedy in (one.remedy for one in refused[engine].told if one.remedy):
            remedies.setdefault(remedy, {})[engine] = None
    lines: dict[str, str] = {}
    for remedy, engines in remedies.items():
        named = ", ".join(engines)
        lines[named] = f"{lines[named]}; {remedy}" if named in lines else remedy
    if verbose:
        lines |= {f"{one.engine}, too": "; ".join(one.notes) for one in given if one.notes}
    put(out, facts(lines, indent=2, dim=True))


def checked(out: "Console", found: "Checked", *, strict: bool, verbose: bool) -> None:
    """Print the verdicts of a check and, below, what is wrong.

    Args:
        out: where to.
        found: the check.
        strict: warnings count as failures.
        verbose: every finding.
    """
    if found.verdicts:
        verdicts(out, found.verdicts, verbose=verbose)
        out.print()
    show_report.report(out, found.report, strict=strict, verbose=verbose)


def _reasons(verdict: Verdict, *, verbose: bool) -> list[str]:
    """Kernels and what to know, or why not: of one kind of module one remark, and not too many."""
    first = {(one.topic, one.subject): one.line for one in reversed(verdict.told)}
    lines = [one.line for one in verdict.told if first[one.topic, one.subject] == one.line]
    lines = lines if verbose else [_SOURCE.sub("", line) for line in lines]
    more = [f"and {len(lines) - _MOST} more (-v)"] if len(lines) > _MOST and not verbose else []
    kernels = () if verdict.loads is Loads.NO else verdict.kernels
    return [*kernels, *(lines[:_MOST] if more else lines), *more]


def _alike(found: Iterable[Verdict]) -> Iterable[list[Verdict]]:
    """Verdicts of one engine that differ in their numbers only, in the order of each group's first."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for one in found:
        said = tuple((remark.topic, remark.subject) for remark in one.told)
        kernels = () if one.loads is Loads.NO else one.kernels
        groups.setdefault((one.engine, one.loads, kernels, said), []).append(one)
    return groups.values()
