"""Parts of a model: modules that engines hold as one matrix and that are packed alike, and the packings allowed.

base recipe --> plan --> parts        q, k, v; gate, up; a layer's experts
free         the recipe packs the role: any choice that fits its columns is allowed
fixed        a rule sets bits, or the recipe keeps the role: only the recipe's packing
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from g4convert.engines.units import FusedUnit, unit_of
from g4convert.errors import UsageError
from g4convert.fitting.choices import Form
from g4convert.gemma4 import Role, Weight
from g4convert.planning.packings import Packable, applies
from g4convert.planning.plan import Plan
from g4convert.planning.recipe import Recipe
from g4convert.planning.rules import KEPT_BITS, PackRole
from g4convert.planning.steps import find_packable_in, packed_tensors

_CODES_IN_A_WORD = 8  # codes of 4 bits in an int32


@dataclass(frozen=True, slots=True)
class Part:
    """Modules of one unit, which always get the same packing.

    Args:
        unit: unit that engines hold as one matrix.
        role: role in the recipe.
        weights: weights of its modules, in the canonical order.
        forms: allowed packings; a fixed part has only that of the base recipe.
        base: packing in the base recipe.
    """

    unit: FusedUnit
    role: PackRole
    weights: tuple[Weight, ...]
    forms: tuple[Form, ...]
    base: Form

    @property
    def name(self) -> str:
        """Readable name: `layers.3.self_attn.qkv_proj`."""
        return self.unit.label

    @property
    def kind(self) -> str:
        """Role and module pattern, the same in every layer: `attention *.self_attn.o_proj`."""
        return f"{self.role} {self.unit.pattern}"

    @property
    def is_free(self) -> bool:
        """True if more than one packing is allowed."""
        return len(self.forms) > 1

    @property
    def params(self) -> int:
        """Number of weight values."""
        return sum(prod(weight.shape) for weight in self.weights)

    def without(self, refused: Collection[Form]) -> "Part":
        """Return the part without the `refused` packings; a single one left fixes it. Fixed parts stay unchanged."""
        if not self.is_free:
            return self
        forms = tuple(form for form in self.forms if form not in refused)
        return replace(self, forms=forms, base=forms[0] if len(forms) == 1 else self.base)

    def nbytes(self, form: Form) -> int:
        """Return the bytes of the stored tensors if the part is packed as `form`."""
        if form is None:
            return sum(prod(weight.shape) * weight.dtype.itemsize for weight in self.weights)
        return sum(info.nbytes for weight in self.weights for info in packed_tensors("", weight.shape, form))


def find_parts(plan: Plan, choices: Sequence[Form] = ()) -> tuple[Part, ...]:
    """Return the parts of a plan, without the vision tower, which is kept or packed as a whole.

    Args:
        plan: the plan.
        choices: packings allowed for free parts; if empty, no part is free.
    """
    return tuple(_find_parts(plan, choices))


def _find_parts(plan: Plan, choices: Sequence[Form]) -> Iterator[Part]:
    """Yield the parts of a plan."""
    base = {step.weight.name: step.packing for step in plan.quantized}
    grouped: dict[FusedUnit, list[Packable]] = {}
    for packable in find_packable_in(plan):
        weight = packable.weight
        if packable.role is PackRole.VISION_TOWER:
            _refuse_rules_of_towers(plan.recipe, packable)
        else:
            role = Role.ATTENTION if weight.role is Role.KV_SHARED else weight.role
            grouped.setdefault(unit_of(weight.module, role, plan.inventory.architecture), []).append(packable)
    for unit, members in grouped.items():
        weights = tuple(member.weight for member in members)
        form = base.get(weights[0].name)
        forms = tuple(_select_fitting(weights, choices)) if _is_free(plan.recipe, members) else ()
        yield Part(unit, members[0].role, weights, forms if len(forms) > 1 else (form,), form)


def _is_free(recipe: Recipe, members: Iterable[Packable]) -> bool:
    """Return whether the recipe packs the members' role and no rule sets their bits."""
    ruled = any(rule.bits is not None and applies(recipe, rule, member) for member in members for rule in recipe.rules)
    role = next(iter(members)).role
    return not ruled and recipe.bits.get(role, 0 if role in recipe.pack else KEPT_BITS) != KEPT_BITS


def _select_fitting(weights: Sequence[Weight], choices: Iterable[Form]) -> Iterator[Form]:
    """Yield the packings whose groups divide the rows of all weights, without those that make equal tensors."""
    seen = set()
    for form in choices:
        if form is not None and any(weight.shape[1] % (form.group_size or _CODES_IN_A_WORD) for weight in weights):
            continue
        key = None if form is None else (form.num_bits, *(form.group_size or weight.shape[1] for weight in weights))
        if key not in seen:
            seen.add(key)
            yield form


def _refuse_rules_of_towers(recipe: Recipe, packable: Packable) -> None:
    """Raise if a rule applies to the vision tower: text shows no loss there, and a fit writes no rules for it."""
    rules = [rule.text for rule in recipe.rules if applies(recipe, rule, packable)]
    if rules:
        raise UsageError(
            "a fit writes no rules for the vision tower, whose loss no text shows",
            offenders=rules,
            hint="keep it, or pack all of it with `bits`",
        )
