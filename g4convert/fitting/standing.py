"""Losses of `gptq` and `best`, estimated from the losses of a method that stands in for them.

    loss  =  T + share (A - T)      A  loss of all parts, rounded by `imatrix` (or `mse`)
                                    T  loss of the parts outside layers alone: tables and head

`gptq` and `best` round whole layers on real inputs, which a change of one part does not have. In layers they lose a
share of what `imatrix` loses, outside they round as `mse` does. Without the share, a choice would give layers the bits
that tables and head need; among parts of layers it changes nothing. It is the share of a real model, see
docs/quality.md: other models have another.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from g4convert.array_types import F64
from g4convert.fitting.choices import Form
from g4convert.fitting.parts import Part
from g4convert.fitting.problem import Losses
from g4convert.fitting.sensitivities import Measure
from g4convert.planning.costs import look_up_kl
from g4convert.planning.recipe import RecipeMethod
from g4convert.quantization import Method

_GROUP: Final = 32
"""Group size of the measured losses."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """Measure of whole choices by a method for which another one stands in.

    Args:
        measure: measures by the method that stands in for it.
        share: share of its loss that parts of layers have.
    """

    measure: Measure
    share: float

    def losses(self, forms: Iterable[tuple[Part, Form]]) -> F64:
        """Return the estimated loss on each text; see `Measure.losses`."""
        parts_and_forms = [*forms]
        outside = [(part, form) for part, form in parts_and_forms if not _is_in_layer(part)]
        whole = self.measure.losses(parts_and_forms)
        tables: F64 | float = self.measure.losses(outside) if any(form for _, form in outside) else 0.0
        estimated: F64 = tables + self.share * (whole - tables)
        return estimated


def look_up_share(method: Method, stands: Method, *, experts: bool) -> float:
    """Return the loss of a method as a share of the loss of its stand-in; 1 if it is its own stand-in.

    Args:
        method: method of the recipe.
        stands: method that rounds what is measured.
        experts: whether the model has experts.
    """
    losses, _ = look_up_kl(_GROUP, has_experts=experts)
    return losses[RecipeMethod(method)] / losses[RecipeMethod(stands)] if method in {Method.GPTQ, Method.BEST} else 1.0


def scale_losses(losses: Losses, parts: Iterable[Part], share: float) -> Losses:
    """Return losses of single changes, those of parts of layers times `share`."""
    inside = {part.name for part in parts if _is_in_layer(part)}
    return {
        name: {label: loss * share if name in inside else loss for label, loss in forms.items()}
        for name, forms in losses.items()
    }


def _is_in_layer(part: Part) -> bool:
    return part.unit.layer is not None
