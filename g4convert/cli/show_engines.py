"""Printing of engines' verdicts as a table, where numbers of GPUs with the same verdict share a row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from g4convert.cli import show_report
from g4convert.cli.tables import facts, in_lines, put, table
from g4convert.engines.limits import TORN
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.verdicts import BASIS, Loads, Verdict
from g4convert.errors import GateError

if TYPE_CHECKING:
    from rich.console import Console

    from g4convert.inspection.engines import Checked
    from g4convert.inspection.fix import Fixed

_MORE: Final = "`quantize` with these options packs less, and more engines or GPUs load it"
_PADDED: Final = "padded: a GPU's share, with zeros, to whole tiles; same results, more memory"
_TORN: Final = "multiple of {sizes}: the group size; weights that share a scale stay on one GPU"
_MOST: Final = 3
"""Largest number of reasons in a row that is printed without -v."""


def verdicts(out: "Console", found: Iterable[Verdict], *, command: str = "", verbose: bool = False) -> None:
    """Print the verdicts, the basis of their rules, and the remedies for refusals.

    Args:
        out: console that prints.
        found: verdicts, in the order of engines and sizes.
        command: the command that quantizes, which the options of a remedy are added to; empty if it is shown elsewhere.
        verbose: print notes, sources and all reasons, too.
    """
    given = list(found)
    rows = []
    told = ""
    for same in _alike(given):
        first = same[0]
        sizes = "any" if first.engine == "transformers" else ", ".join(str(one.tp) for one in same)
        name, told = "" if first.label == told else first.label.replace(" to ", "-"), first.label
        rows.append((name, sizes, first.loads.value, "; ".join(_reasons(same, verbose=verbose))))
    put(out, table(("engine", "GPUs", "loads", "how, or why not"), rows))
    if verbose:
        put(out, facts({one.engine: "; ".join(one.notes) for one in given if one.notes}, indent=2, dim=True))
    if any(remark.topic is Topic.PADDING for one in given for remark in one.told):
        out.print(f"  {_PADDED}", style="dim", soft_wrap=True)
    rests = dict.fromkeys(remark.reason.rest for one in given for remark in one.told)
    if torn := [rest.removeprefix(TORN) for rest in rests if rest.startswith(TORN)]:
        out.print(f"  {_TORN.format(sizes=' or '.join(torn))}", style="dim", soft_wrap=True)
    out.print(f"  {BASIS}", style="dim", soft_wrap=True)
    _ways(out, _remedies(given), command)


def _remedies(given: Sequence[Verdict]) -> dict[str, tuple[Remedy, ...]]:
    """Return the ways that make each refusing engine load the checkpoint, by the engine's name."""
    found = {}
    for name in dict.fromkeys(one.name for one in given):
        refused = [one for one in given if one.name == name and one.loads is Loads.NO]
        in_rows = any(one.name == name and one.loads is not Loads.NO for one in given)
        every = dict.fromkeys(way for one in refused for way in one.ways if not (in_rows and way.tp))
        found[name] = tuple(way for way in every if not way.is_none or len(every) == 1)
    return found


def _ways(out: "Console", remedies: Mapping[str, tuple[Remedy, ...]], command: str) -> None:
    """Print the options that let more engines load a checkpoint, those for most engines first, and other ways."""
    options = {way.options: way for ways in remedies.values() for way in ways if way.options}
    others: dict[str, list[str]] = {}
    for name, ways in remedies.items():
        for way in ways:
            if not way.options:
                others.setdefault(name, []).append(str(way))
    ranked = sorted(options.values(), key=lambda way: -len(way.loads))
    if ranked:
        out.print(f"\n{_MORE}", style="dim", soft_wrap=True)
        rows = {
            one.options: "; ".join(filter(None, (one.effect, f"loads in {', '.join(one.loads)}"))) for one in ranked
        }
        put(out, facts(rows, indent=2, dim=True))  # an option stays in one piece
        if command:
            begin = "  the first in full: " if ranked[1:] else "  in full: "
            whole = f"{command} {ranked[0].options}"
            line = in_lines(begin, whole, out.width) if out.is_terminal else begin + whole
            out.print(line, style="dim", markup=False, soft_wrap=True)
    if others:
        out.print("\nwhat would let more engines load it", style="dim")
        put(out, facts({name: ", or ".join(texts) for name, texts in others.items()}, indent=2, dim=True))


def checked(out: "Console", found: "Checked", *, command: str, strict: bool, verbose: bool) -> None:
    """Print the verdicts of a check and, below, its findings.

    Args:
        out: console that prints.
        found: result of the check.
        command: see `verdicts`.
        strict: count warnings as failures.
        verbose: print every finding.
    """
    if not found.packed:
        out.print("nothing is quantized here; `g4convert quantize` packs it", soft_wrap=True)
        out.print()
    if found.verdicts:
        verdicts(out, found.verdicts, command=command, verbose=verbose)
        out.print()
    show_report.report(out, found.report, strict=strict, verbose=verbose, verdicts=_loaded(found.verdicts))


def _loaded(found: Iterable[Verdict]) -> str:
    """Return words on the engines that load a checkpoint, with their numbers of GPUs, and on those that do not."""
    names: dict[str, list[str]] = {}
    for one in found:
        loaded = names.setdefault(one.name, [])
        if one.loads is not Loads.NO:
            loaded.append("" if one.engine == "transformers" else str(one.tp))
    yes = [f"{name} ({', '.join(sizes)} GPUs)" if any(sizes) else name for name, sizes in names.items() if sizes]
    no = [name for name, sizes in names.items() if not sizes]
    said = [f"{word} {', '.join(named)}" for word, named in (("loads in", yes), ("not for", no)) if named]
    return "; ".join(said)


def _reasons(same: list[Verdict], *, verbose: bool) -> list[str]:
    """Return kernels and remarks of verdicts that share a row; without `verbose`, at most `_MOST` remarks."""
    lines = [_joined(each, verbose=verbose) for each in zip(*map(_remarks, same), strict=True)]
    more = [f"and {len(lines) - _MOST} more (-v)"] if len(lines) > _MOST and not verbose else []
    kernels = () if same[0].loads is Loads.NO else _kernels(same[0].kernels)
    return [*kernels, *(lines[:_MOST] if more else lines), *more]


def _kernels(names: tuple[str, ...]) -> list[str]:
    """Return names of kernels, without one that another names with an alternative: `Marlin (Machete on Hopper)`."""
    return [name for name in names if not any(other.startswith(f"{name} (") for other in names)]


def _remarks(verdict: Verdict) -> list[Remark]:
    """Return a verdict's remarks, but only the first remark of each topic on each kind of module."""
    first = {(one.topic, one.subject): one.line for one in reversed(verdict.told)}
    return [one for one in verdict.told if first[one.topic, one.subject] == one.line]


def _joined(remarks: tuple[Remark, ...], *, verbose: bool) -> str:
    """Return one line for remarks that differ only in the share of a GPU; with `verbose`, with the engine's source."""
    reason = remarks[0].reason
    shares = dict.fromkeys(one.reason.share.strip() for one in remarks)
    whole = " " * reason.share.startswith(" ") + " and ".join(shares)
    rest = "" if remarks[0].topic is Topic.PADDING else reason.rest  # told once, below the table
    return remarks[0].told(replace(reason, share=whole, source=reason.source if verbose else "", rest=rest))


def _alike(found: Iterable[Verdict]) -> Iterable[list[Verdict]]:
    """Return groups of an engine's verdicts whose reasons differ only in the share of a GPU, in order of appearance."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for one in found:
        said = tuple(remark.told(replace(remark.reason, share="")) for remark in _remarks(one))
        kernels = () if one.loads is Loads.NO else one.kernels
        groups.setdefault((one.engine, one.loads, kernels, said), []).append(one)
    return groups.values()


def mended(out: "Console", fixed: "Fixed | None") -> None:
    """Print what `check --fix` changed."""
    lines = ["config.json: nothing to correct"]
    if fixed is not None:
        lines = [f"config.json: quantization_config corrected; the old file is {fixed.kept.name}"]
        lines += [f"  {line}" for line in fixed.changes]
    out.print("\n".join(lines), soft_wrap=True, markup=False)


def mended_json(fixed: "Fixed | GateError | None") -> dict[str, Any]:
    """Return what `check --fix` did as JSON: the path of the old file if it wrote, its changes, why it refused."""
    match fixed:
        case None:
            return {"written": False, "old": None, "changes": [], "refused": None}
        case GateError():
            refused = {"message": fixed.message, "reasons": [*fixed.offenders], "hint": fixed.hint}
            return {"written": False, "old": None, "changes": [], "refused": refused}
    return {"written": True, "old": str(fixed.kept), "changes": [*fixed.changes], "refused": None}
