"""Printing of a fit: chosen packings by kind of part or by part, with bytes and losses, and points of size and KL."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from shlex import quote
from statistics import stdev
from typing import TYPE_CHECKING

from rich.console import Console

from g4convert.cli.next_steps import show_next
from g4convert.cli.tables import facts, put, table
from g4convert.fitting.choices import label_of
from g4convert.quantities import count, plural, size

if TYPE_CHECKING:
    from g4convert.fitting.choosing import Point
    from g4convert.fitting.parts import Part
    from g4convert.fitting.result import Fitted


def fitted(out: Console, found: "Fitted", model: str, *, parts: bool) -> None:
    """Print the result of a fit.

    Args:
        out: console that prints.
        found: the fit.
        model: name of the model, as the user gave it.
        parts: print every part with bytes and losses of all its packings, instead of kinds of parts.
    """
    chosen, problem = found.chosen, found.problem
    basis = found.sensitivities.basis
    unit = basis.unit.value
    columns = ("part", "weights", "packed", "size", unit, *(["measured"] if parts else []))
    put(out, table(columns, _parts(found) if parts else _kinds(found), right={"weights", "size", unit, "measured"}))
    out.print()
    points = [*found.presets, *found.tried[:-1], chosen]
    rows = [_point(found, one, "chosen" if one is chosen else one.name) for one in points]
    put(out, table(("recipe", "size", "bits", unit, "predicted"), rows, right={"size", "bits", unit, "predicted"}))
    out.print()
    told = {
        "written": str(found.output),
        "size": f"{size(chosen.nbytes)} of tensors; {size(problem.fixed_bytes)} of them stay as the recipe has them",
        "losses": f"kept; `--sensitivities {quote(str(found.kept))}` measures nothing anew on the same model and texts",
        unit: _meaning(found),
    }
    put(out, facts(told))
    output = f"{Path(model).name}-{found.output.stem}"
    show_next(out, f"g4convert quantize {quote(model)} -o {quote(output)} -r {quote(str(found.output))}")


def _meaning(found: "Fitted") -> str:
    """Return the meaning of the second table's losses as text."""
    basis, losses = found.sensitivities.basis, found.chosen.losses
    if basis.unit == "KL":
        rows = f"{plural(len(losses), 'row')} of {basis.length} token ids"
        error = f" +- {stdev(losses) / sqrt(len(losses)):.4f}" if losses[1:] else ""
        return (
            f"{found.chosen.measured:.4f}{error} nats, the mean over {rows}, which are others than those that single "
            f"changes were measured on; scales by {found.rounded_by}"
        )
    return f"share of each part's outputs, added up, by {found.rounded_by}: the model was not run, and has no KL"


def _kinds(found: "Fitted") -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of part, with the number of parts in each packing, and the sum of their losses."""
    kinds: defaultdict[str, list[Part]] = defaultdict(list)
    for part in found.problem.free:
        kinds[part.unit.name].append(part)
    for kind, members in kinds.items():
        forms = {part.name: found.chosen.assignment[part.name] for part in members}
        counts = Counter(label_of(form) for form in forms.values())
        lost = sum(found.used(part, forms[part.name]) for part in members)
        yield (
            kind,
            count(sum(part.params for part in members)),
            ", ".join(f"{number} x {label}" for label, number in counts.most_common()),
            size(sum(part.nbytes(forms[part.name]) for part in members)),
            f"{lost:.5f}",
        )


def _parts(found: "Fitted") -> Iterator[tuple[str, ...]]:
    """Yield a row for each packing of each part; the chosen one is marked."""
    for part in found.problem.free:
        chosen = found.chosen.assignment[part.name]
        for form in part.forms:
            mark = "*" if form == chosen else " "
            losses = f"{found.used(part, form):.6f}", f"{found.measured(part, form):.6f}"
            yield part.name, count(part.params), f"{mark} {label_of(form)}", size(part.nbytes(form)), *losses


def _point(found: "Fitted", one: "Point", name: str) -> tuple[str, ...]:
    """Return a point's name, size, bits, loss and prediction; bits only if fixed parts keep the recipe's packing."""
    fixed = (part for part in found.problem.parts if not part.is_free)
    alike = all(one.assignment.get(part.name, part.base) == part.base for part in fixed)
    bits = f"{found.problem.bits(one.nbytes):.3f}" if alike and len(one.assignment) == len(found.problem.parts) else ""
    predicted = "" if one.predicted is None else f"{one.predicted:.4f}"
    return name, size(one.nbytes), bits, f"{one.measured:.4f}", predicted
