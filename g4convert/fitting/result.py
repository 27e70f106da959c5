"""The result of a fit: the choice and all measurements, as JSON and as comments of the recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4convert.fitting.choices import Form, label_form
from g4convert.fitting.choosing import Point
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Losses, Problem
from g4convert.fitting.sensitivities import LossUnit, Sensitivities
from g4convert.fitting.target import Target
from g4convert.quantities import size


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted recipe and the measurements behind it.

    Args:
        output: the recipe file.
        kept: file that keeps the measured losses.
        problem: parts of the model and their allowed packings.
        sensitivities: measured losses of single changes.
        losses: losses that decided the choice: smoothed, those of parts of layers times `share`.
        share: share of the recipe's method in what parts of layers lose as rounded, see `standing`.
        tried: choices that were measured as a whole, the written choice last.
        presets: shipped recipes, measured on the same token ids.
        corners: size and predicted loss along the frontier.
        already_done: True if the recipe was there, made by the same call.
    """

    output: Path
    kept: Path
    problem: Problem
    sensitivities: Sensitivities
    losses: Losses
    share: float
    tried: tuple[Point, ...]
    presets: tuple[Point, ...]
    corners: tuple[tuple[int, float], ...]
    already_done: bool = False

    def __repr__(self) -> str:
        """Return the recipe, its size and its measured loss, as all fields would fill pages."""
        choice = self.chosen
        return f"Fitted({str(self.output)!r}, bytes={choice.nbytes:,}, measured={choice.measured:.4g})"

    @property
    def chosen(self) -> Point:
        """The choice that was written."""
        return self.tried[-1]

    @property
    def rounded_by(self) -> str:
        """Name the method that rounded what was measured, and how it counts for one that takes whole layers."""
        method, own = self.sensitivities.basis.method, self.problem.plan.recipe
        return f"{method}, times {self.share:.2f} in layers for {own.method}" if own.is_layered else method

    def measured(self, part: Part, form: Form) -> float:
        """Return the measured loss of a part in a packing."""
        return 0.0 if form is None else self.sensitivities.losses[part.name][label_form(form)]

    def used(self, part: Part, form: Form) -> float:
        """Return the loss of a part in a packing by which the choice was made."""
        return 0.0 if form is None else self.losses[part.name][label_form(form)]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `g4convert fit --json` prints it."""
        parts = [
            {
                "name": part.name,
                "role": part.role.value,
                "params": part.params,
                "chosen": label_form(self.chosen.assignment[part.name]),
                "choices": [
                    {
                        "packing": label_form(form),
                        "bytes": part.nbytes(form),
                        "measured": self.measured(part, form),
                        "used": self.used(part, form),
                    }
                    for form in part.forms
                ],
            }
            for part in self.problem.free
        ]
        return {
            "schema_version": 1,
            "output": str(self.output),
            "bytes": self.chosen.nbytes,
            "bits_per_weight": self.problem.bits(self.chosen.nbytes),
            "predicted": self.chosen.predicted,
            "measured": self.chosen.measured,
            **({} if self.share == 1 else {"share": round(self.share, 4)}),
            "basis": self.sensitivities.basis.to_dict(),
            "parts": parts,
            "tried": [_point_to_dict(point) for point in self.tried],
            "presets": [_point_to_dict(point) for point in self.presets],
            "frontier": [{"bytes": nbytes, "predicted": loss} for nbytes, loss in self.corners],
            **({"already_done": True} if self.already_done else {}),
        }

    def comments(self, target: Target) -> list[str]:
        """Return the first lines of the recipe: the command that runs it, and its measured loss."""
        choice, basis = self.chosen, self.sensitivities.basis
        loss = f"{choice.measured:.4g}"
        bits, ids = f"{self.problem.bits(choice.nbytes):.3f}", f"{len(choice.losses)} x {basis.length}"
        return [
            f"g4convert quantize MODEL -o OUT -r {self.output.name}",
            f"Chosen by {fit_command(target)}: {size(choice.nbytes)} of tensors; {bits} bits for each weight",
            *(
                [
                    f"that was decided on. KL {loss} nats, measured as a whole on {ids} token ids and",
                    f"rounded by {self.rounded_by}; single changes add up to {choice.predicted:.4g} on others.",
                ]
                if basis.unit is LossUnit.KL
                else [
                    f"that was decided on. Output errors, rounded by {self.rounded_by}, add up to",
                    f"{loss}: the model did not fit the memory, and what that is in KL was not measured.",
                ]
            ),
        ]


def fit_command(target: Target) -> str:
    """Return the command by which a recipe says for which target it was chosen."""
    return f"`g4convert fit {target.text}`"


def _point_to_dict(point: Point) -> dict[str, Any]:
    return {"name": point.name, "bytes": point.nbytes, "measured": point.measured, "predicted": point.predicted}
