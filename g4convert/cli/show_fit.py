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
from g4convert.cli.tables import make_facts, make_table, print_trimmed
from g4convert.fitting.choices import label_form
from g4convert.quantities import count, plural, size

if TYPE_CHECKING:
    from g4convert.fitting.choosing import Point
    from g4convert.fitting.parts import Part
    from g4convert.fitting.result import Fitted


def print_fit(out: Console, fit: "Fitted", model: str, *, parts: bool) -> None:
    """Print the result of a fit.

    Args:
        out: console that prints.
        fit: the fit.
        model: name of the model, as the user gave it.
        parts: print every part with bytes and losses of all its packings, instead of kinds of parts.
    """
    chosen, problem = fit.chosen, fit.problem
    basis = fit.sensitivities.basis
    unit = basis.unit.value
    if parts:
        columns: tuple[str, ...] = ("part", "weights", "packed", "size", unit, "measured")
        rows = _part_rows(fit)
    else:
        columns, rows = ("part", "weights", "packed", "size", unit), _kind_rows(fit)
    print_trimmed(out, make_table(columns, rows, right={"weights", "size", unit, "measured"}))
    out.print()
    points = [*fit.presets, *fit.tried[:-1], chosen]
    point_rows = [_point_row(fit, point, "chosen" if point is chosen else point.name) for point in points]
    columns = ("recipe", "size", "bits", unit, "predicted")
    print_trimmed(out, make_table(columns, point_rows, right={"size", "bits", unit, "predicted"}))
    out.print()
    facts = {
        "written": str(fit.output),
        "size": f"{size(chosen.nbytes)} of tensors; {size(problem.fixed_bytes)} of them stay as the recipe has them",
        "losses": f"kept; `--sensitivities {quote(str(fit.kept))}` measures nothing anew on the same model and texts",
        unit: _explain_losses(fit),
    }
    print_trimmed(out, make_facts(facts))
    output = f"{Path(model).name}-{fit.output.stem}"
    show_next(out, f"g4convert quantize {quote(model)} -o {quote(output)} -r {quote(str(fit.output))}")


def _explain_losses(fit: "Fitted") -> str:
    """Explain the losses in the second table."""
    basis, losses = fit.sensitivities.basis, fit.chosen.losses
    if basis.unit == "KL":
        rows = f"{plural(len(losses), 'row')} of {basis.length} token ids"
        error = f" +- {stdev(losses) / sqrt(len(losses)):.4f}" if losses[1:] else ""
        return (
            f"{fit.chosen.measured:.4f}{error} nats, the mean over {rows}, which are others than those that single "
            f"changes were measured on; scales by {fit.rounded_by}"
        )
    return f"share of each part's outputs, added up, by {fit.rounded_by}: the model was not run, and has no KL"


def _kind_rows(fit: "Fitted") -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of part, with the number of parts in each packing, and the sum of their losses."""
    kinds: defaultdict[str, list[Part]] = defaultdict(list)
    for part in fit.problem.free:
        kinds[part.unit.name].append(part)
    for kind, members in kinds.items():
        forms = {part.name: fit.chosen.assignment[part.name] for part in members}
        counts = Counter(label_form(form) for form in forms.values())
        lost = sum(fit.used(part, forms[part.name]) for part in members)
        yield (
            kind,
            count(sum(part.params for part in members)),
            ", ".join(f"{number} x {label}" for label, number in counts.most_common()),
            size(sum(part.nbytes(forms[part.name]) for part in members)),
            f"{lost:.5f}",
        )


def _part_rows(fit: "Fitted") -> Iterator[tuple[str, ...]]:
    """Yield a row for each packing of each part; the chosen one is marked."""
    for part in fit.problem.free:
        chosen = fit.chosen.assignment[part.name]
        for form in part.forms:
            mark = "*" if form == chosen else " "
            losses = f"{fit.used(part, form):.6f}", f"{fit.measured(part, form):.6f}"
            yield part.name, count(part.params), f"{mark} {label_form(form)}", size(part.nbytes(form)), *losses


def _point_row(fit: "Fitted", point: "Point", name: str) -> tuple[str, ...]:
    """Return a point's name, size, bits, loss and prediction; bits only if fixed parts keep the recipe's packing."""
    fixed = (part for part in fit.problem.parts if not part.is_free)
    is_as_recipe = all(point.assignment.get(part.name, part.base) == part.base for part in fixed)
    bits = (
        f"{fit.problem.bits(point.nbytes):.3f}"
        if is_as_recipe and len(point.assignment) == len(fit.problem.parts)
        else ""
    )
    predicted = "" if point.predicted is None else f"{point.predicted:.4f}"
    return name, size(point.nbytes), bits, f"{point.measured:.4f}", predicted
