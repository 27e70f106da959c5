"""Verdicts of engines as a table: numbers of GPUs that are alike are one row."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from g4convert.cli import show_report
from g4convert.cli.tables import facts, put, table
from g4convert.engines.remedies import NO_CHOICE
from g4convert.engines.verdicts import BASIS, Loads, Verdict

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.inspection.engines import Checked

__all__ = ["checked", "verdicts"]

_SOURCE: Final = re.compile(r" \([\w/]+\.py:[^)]*\)")
"""File and line of an engine's source, in brackets."""
_SHARE: Final = re.compile(r" / \d+ = \d+|over \d+ GPUs")
"""The part of a reason that depends on the number of GPUs."""
_MOST: Final = 3
"""Reasons in a row that are printed without -v."""


def verdicts(out: "Console", found: Iterable[Verdict], *, verbose: bool = False) -> None:
    """Print the verdicts, where their rules come from, and what to do about those that say no.

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
        rows.append((name, sizes, first.loads.value, "; ".join(_reasons(same, verbose=verbose))))
    put(out, table(("engine", "GPUs", "loads", ""), rows))
    engines: dict[tuple[str, ...], list[str]] = {}
    for engine in dict.fromkeys(one.engine for one in given):
        refused = (one for one in given if one.engine == engine and one.loads is Loads.NO)
        every = dict.fromkeys(way for one in refused for way in one.ways)
        if ways := tuple(way for way in every if way != NO_CHOICE or len(every) == 1):
            engines.setdefault(ways, []).append(engine)
    lines = {", ".join(named): ", or ".join(ways) for ways, named in engines.items()}
    if verbose:
        put(out, facts({one.engine: "; ".join(one.notes) for one in given if one.notes}, indent=2, dim=True))
    out.print(f"  the rules were {BASIS}", style="dim", soft_wrap=True)
    if lines:
        out.print()
        out.print("to load it", style="dim")
        put(out, facts(lines, indent=2, dim=True))


def checked(out: "Console", found: "Checked", *, strict: bool, verbose: bool) -> None:
    """Print the verdicts of a check and, below, what is wrong.

    Args:
        out: where to.
        found: the check.
        strict: warnings count as failures.
        verbose: every finding.
    """
    if not found.packed:
        out.print("nothing is quantized here; `g4convert quantize` packs it", soft_wrap=True)
        out.print()
    if found.verdicts:
        verdicts(out, found.verdicts, verbose=verbose)
        out.print()
    show_report.report(out, found.report, strict=strict, verbose=verbose)


def _reasons(same: list[Verdict], *, verbose: bool) -> list[str]:
    """Kernels and what to know, or why not: of one kind of module one remark, and not too many."""
    lines = [_joined(each) for each in zip(*map(_lines, same), strict=True)]
    lines = lines if verbose else [_SOURCE.sub("", line) for line in lines]
    more = [f"and {len(lines) - _MOST} more (-v)"] if len(lines) > _MOST and not verbose else []
    kernels = () if same[0].loads is Loads.NO else same[0].kernels
    return [*kernels, *(lines[:_MOST] if more else lines), *more]


def _lines(verdict: Verdict) -> list[str]:
    first = {(one.topic, one.subject): one.line for one in reversed(verdict.told)}
    return [one.line for one in verdict.told if first[one.topic, one.subject] == one.line]


def _joined(lines: tuple[str, ...]) -> str:
    """One reason for several numbers of GPUs, with what differs of each."""
    parts = dict.fromkeys(" and ".join(_SHARE.findall(line)) for line in lines)
    whole = " and ".join(part.strip() for part in parts)
    return _SHARE.sub(lambda found: " " * found[0].startswith(" ") + whole, lines[0], count=1)


def _alike(found: Iterable[Verdict]) -> Iterable[list[Verdict]]:
    """Verdicts of one engine with the same reasons but for the share of a GPU, in the order of each group's first."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for one in found:
        said = tuple(_SHARE.sub("", line) for line in _lines(one))
        kernels = () if one.loads is Loads.NO else one.kernels
        groups.setdefault((one.engine, one.loads, kernels, said), []).append(one)
    return groups.values()
