"""Printing of engines' verdicts as a table, where numbers of GPUs with the same verdict share a row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from g4convert.cli import show_report
from g4convert.cli.tables import break_command, make_facts, make_table, print_trimmed
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.verdicts import BASIS, Loads, Verdict
from g4convert.errors import GateError

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.inspection.engines import Checked
    from g4convert.inspection.fix import Fixed

_OPTIONS_TITLE: Final = "`quantize` with these options packs less, and more engines or GPUs load it"
_PADDING_NOTE: Final = "padded: a GPU's share, with zeros, to whole tiles; same results, more memory"
_GROUP_NOTE: Final = "multiple of {sizes}: the group size; weights that share a scale stay on one GPU"
_MAX_REASONS: Final = 3
"""Largest number of reasons in a row that is printed without -v."""


def print_verdicts(out: "Console", verdicts: Sequence[Verdict], *, command: str = "", verbose: bool = False) -> None:
    """Print the verdicts, the basis of their rules, and the remedies for refusals.

    Args:
        out: console that prints.
        verdicts: verdicts, in the order of engines and sizes.
        command: the command that quantizes, which the options of a remedy are added to; empty if it is shown elsewhere.
        verbose: print notes, sources and all reasons, too.
    """
    rows = []
    label_above = ""
    for alike in _group_alike(verdicts):
        first = alike[0]
        sizes = "any" if first.engine == "transformers" else ", ".join(str(verdict.tp) for verdict in alike)
        label = "" if first.label == label_above else first.label.replace(" to ", "-")
        rows.append((label, sizes, first.loads.value, "; ".join(_describe_reasons(alike, verbose=verbose))))
        label_above = first.label
    print_trimmed(out, make_table(("engine", "GPUs", "loads", "how, or why not"), rows))
    if verbose:
        notes = {verdict.engine: "; ".join(verdict.notes) for verdict in verdicts if verdict.notes}
        print_trimmed(out, make_facts(notes, indent=2, dim=True))
    remarks = [remark for verdict in verdicts for remark in verdict.told]
    if any(remark.topic is Topic.PADDING for remark in remarks):
        out.print(f"  {_PADDING_NOTE}", style="dim", soft_wrap=True)
    groups = dict.fromkeys(remark.reason.group for remark in remarks if remark.reason.group is not None)
    if groups:
        out.print(f"  {_GROUP_NOTE.format(sizes=' or '.join(map(str, groups)))}", style="dim", soft_wrap=True)
    out.print(f"  {BASIS}", style="dim", soft_wrap=True)
    _print_remedies(out, _collect_remedies(verdicts), command)


def _collect_remedies(verdicts: Sequence[Verdict]) -> dict[str, tuple[Remedy, ...]]:
    """Return the ways that make each refusing engine load the checkpoint, by the engine's name."""
    remedies = {}
    for name in dict.fromkeys(verdict.name for verdict in verdicts):
        same_engine = [verdict for verdict in verdicts if verdict.name == name]
        refused = [verdict for verdict in same_engine if verdict.loads is Loads.NO]
        loads_somewhere = len(refused) < len(same_engine)  # then the table tells which numbers of GPUs
        ways = dict.fromkeys(way for verdict in refused for way in verdict.ways if not (loads_somewhere and way.tp))
        remedies[name] = tuple(way for way in ways if not way.is_none or len(ways) == 1)
    return remedies


def _print_remedies(out: "Console", remedies: Mapping[str, tuple[Remedy, ...]], command: str) -> None:
    """Print the options that let more engines load a checkpoint, those for most engines first, and other ways."""
    options = {way.options: way for ways in remedies.values() for way in ways if way.options}
    others: dict[str, list[str]] = {}
    for name, ways in remedies.items():
        for way in ways:
            if not way.options:
                others.setdefault(name, []).append(str(way))
    ranked = sorted(options.values(), key=lambda way: -len(way.loads))
    if ranked:
        out.print(f"\n{_OPTIONS_TITLE}", style="dim", soft_wrap=True)
        rows = {
            way.options: "; ".join(filter(None, (way.effect, f"loads in {', '.join(way.loads)}"))) for way in ranked
        }
        print_trimmed(out, make_facts(rows, indent=2, dim=True))  # an option stays in one piece
        if command:
            begin = "  the first in full: " if ranked[1:] else "  in full: "
            first = f"{command} {ranked[0].options}"
            line = break_command(begin, first, out.width) if out.is_terminal else begin + first
            out.print(line, style="dim", markup=False, soft_wrap=True)
    if others:
        out.print("\nwhat would let more engines load it", style="dim")
        print_trimmed(
            out, make_facts({name: ", or ".join(texts) for name, texts in others.items()}, indent=2, dim=True)
        )


def print_check(out: "Console", checked: "Checked", *, command: str, strict: bool, verbose: bool) -> None:
    """Print the verdicts of a check and, below, its findings.

    Args:
        out: console that prints.
        checked: result of the check.
        command: see `print_verdicts`.
        strict: count warnings as failures.
        verbose: print every finding.
    """
    if not checked.packed:
        out.print("nothing is quantized here; `g4convert quantize` packs it", soft_wrap=True)
        out.print()
    if checked.verdicts:
        print_verdicts(out, checked.verdicts, command=command, verbose=verbose)
        out.print()
    show_report.print_report(
        out, checked.report, strict=strict, verbose=verbose, verdicts=_summarize_verdicts(checked.verdicts)
    )


def _summarize_verdicts(verdicts: Iterable[Verdict]) -> str:
    """Say which engines load a checkpoint, with their numbers of GPUs, and which do not."""
    sizes_by_name: dict[str, list[str]] = {}
    for verdict in verdicts:
        sizes = sizes_by_name.setdefault(verdict.name, [])
        if verdict.loads is not Loads.NO:
            sizes.append("" if verdict.engine == "transformers" else str(verdict.tp))
    gpus = {name: f"{', '.join(sizes)} GPU{'' if sizes == ['1'] else 's'}" for name, sizes in sizes_by_name.items()}
    loading = [f"{name} ({gpus[name]})" if any(sizes) else name for name, sizes in sizes_by_name.items() if sizes]
    refusing = [name for name, sizes in sizes_by_name.items() if not sizes]
    clauses = (("loads in", loading), ("not for", refusing))
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in clauses if names)


def _describe_reasons(alike: Sequence[Verdict], *, verbose: bool) -> list[str]:
    """Return kernels and remarks of verdicts that share a row; without `verbose`, at most `_MAX_REASONS` remarks."""
    lines = [_join_remarks(each, verbose=verbose) for each in zip(*map(_first_of_each_topic, alike), strict=True)]
    more = [f"and {len(lines) - _MAX_REASONS} more (-v)"] if len(lines) > _MAX_REASONS and not verbose else []
    kernels = () if alike[0].loads is Loads.NO else _distinct_kernels(alike[0].kernels)
    return [*kernels, *(lines[:_MAX_REASONS] if more else lines), *more]


def _distinct_kernels(names: tuple[str, ...]) -> list[str]:
    """Return names of kernels, but not `Marlin` beside `Marlin (Machete on Hopper)`, which names it, too."""
    return [name for name in names if not any(other.startswith(f"{name} (") for other in names)]


def _first_of_each_topic(verdict: Verdict) -> list[Remark]:
    """Return a verdict's remarks, but only the first remark of each topic on each kind of module."""
    first = {(remark.topic, remark.subject): remark.line for remark in reversed(verdict.told)}
    return [remark for remark in verdict.told if first[remark.topic, remark.subject] == remark.line]


def _join_remarks(remarks: tuple[Remark, ...], *, verbose: bool) -> str:
    """Return one line for remarks that differ only in the share of a GPU; with `verbose`, with the engine's source."""
    reason = remarks[0].reason
    shares = " and ".join(dict.fromkeys(remark.reason.share.strip() for remark in remarks))
    share = f" {shares}" if reason.share.startswith(" ") else shares
    rest = "" if remarks[0].topic is Topic.PADDING else reason.rest  # told once, below the table
    return remarks[0].told(replace(reason, share=share, source=reason.source if verbose else "", rest=rest))


def _group_alike(verdicts: Iterable[Verdict]) -> Iterable[list[Verdict]]:
    """Return groups of an engine's verdicts whose reasons differ only in the share of a GPU, in order of appearance."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for verdict in verdicts:
        reasons = tuple(remark.told(replace(remark.reason, share="")) for remark in _first_of_each_topic(verdict))
        kernels = () if verdict.loads is Loads.NO else verdict.kernels
        groups.setdefault((verdict.engine, verdict.loads, kernels, reasons), []).append(verdict)
    return groups.values()


def print_fix(out: "Console", fixed: "Fixed | None") -> None:
    """Print what `check --fix` changed."""
    lines = ["config.json: nothing to correct"]
    if fixed is not None:
        lines = [f"config.json: quantization_config corrected; the old file is {fixed.kept.name}"]
        lines += [f"  {line}" for line in fixed.changes]
    out.print("\n".join(lines), soft_wrap=True, markup=False)


def fix_to_dict(fixed: "Fixed | GateError | None") -> dict[str, Any]:
    """Describe what `check --fix` did, as JSON: the path of the old file if it wrote, its changes, why it refused."""
    match fixed:
        case None:
            return {"written": False, "old": None, "changes": [], "refused": None}
        case GateError():
            refused = {"message": fixed.message, "reasons": [*fixed.offenders], "hint": fixed.hint}
            return {"written": False, "old": None, "changes": [], "refused": refused}
    return {"written": True, "old": str(fixed.kept), "changes": [*fixed.changes], "refused": None}
