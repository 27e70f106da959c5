"""Parts of a model that are packed alike, what each may be packed as, and the bytes that this takes.

    base recipe --> plan --> parts        one for what engines hold as one matrix: q, k, v; gate, up; a layer's experts
                             free         roles that the recipe packs: any of the choices that fits
                             fixed        a rule of the recipe says bits, or it keeps the role: as the recipe has it

A head that is tied with the embedding is one tensor as long as neither is packed, and two as soon as one is. So these
two parts are one item of the frontier, whose options are pairs.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from g4convert.engines.units import Unit, unit_of
from g4convert.errors import GateError, UnsupportedError, UsageError
from g4convert.fitting.choices import Form, label_of
from g4convert.fitting.frontier import Frontier, Item, Option
from g4convert.gemma4 import Role, Weight
from g4convert.planning.layout import lay_out
from g4convert.planning.packings import Packable, applies
from g4convert.planning.recipe import Recipe
from g4convert.planning.rules import KEPT_BITS, PackRole
from g4convert.planning.steps import Plan, packable_of, packed_tensors

__all__ = ["Assignment", "Losses", "Part", "Problem", "Solved", "parts_of"]

Assignment = Mapping[str, Form]
"""Packing of each part, by its name."""
Losses = Mapping[str, Mapping[str, float]]
"""Loss of each part by the label of its packing; one that is kept loses nothing."""

_DRAWN = 300  # points of a frontier
_WORD = 8  # codes of 4 bits in an int32
_SHAPE = 16  # bytes of a weight_shape


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Args:
        unit: the unit of its modules.
        role: role that decides.
        weights: weights of its modules, in the canonical order.
        forms: packings that it may have; a fixed one has the one of the base recipe.
        base: packing under the base recipe.
    """

    unit: Unit
    role: PackRole
    weights: tuple[Weight, ...]
    forms: tuple[Form, ...]
    base: Form

    @property
    def name(self) -> str:
        """Its name for people: `layers.3.self_attn.qkv_proj`."""
        return self.unit.label

    @property
    def kind(self) -> str:
        """The role and the names of such parts in all layers: `attention *.self_attn.o_proj`."""
        return f"{self.role} {self.unit.pattern}"

    @property
    def is_free(self) -> bool:
        """True if there is a choice."""
        return len(self.forms) > 1

    @property
    def params(self) -> int:
        """Number of its weights."""
        return sum(prod(weight.shape) for weight in self.weights)

    def without(self, refused: Collection[Form]) -> "Part":
        """The same with fewer packings, fixed where one is left; a fixed part as it is."""
        if not self.is_free:
            return self
        forms = tuple(form for form in self.forms if form not in refused)
        return replace(self, forms=forms, base=forms[0] if len(forms) == 1 else self.base)

    def nbytes(self, form: Form) -> int:
        """Bytes of its tensors."""
        if form is None:
            return sum(prod(weight.shape) * weight.dtype.itemsize for weight in self.weights)
        return sum(info.nbytes for weight in self.weights for info in packed_tensors("", weight.shape, form))


@dataclass(frozen=True, slots=True)
class Problem:
    """A model, and what may be decided about it.

    Args:
        plan: under the base recipe.
        parts: every part of the decoder that a recipe may pack, in the canonical order.
        rest: bytes of all other tensors.
    """

    plan: Plan
    parts: tuple[Part, ...]
    rest: int

    @classmethod
    def of(cls, plan: Plan, choices: Sequence[Form]) -> "Problem":
        """Find the parts of a plan.

        Args:
            plan: under the base recipe.
            choices: packings that free parts may have; those that do not fit a part are none of its.

        Raises:
            UnsupportedError: a drafter, whose loss is that of the model it drafts for.
            UsageError: the recipe's rules decide on the vision tower, or leave nothing free.
        """
        if plan.architecture.is_assistant:
            raise UnsupportedError(f"{plan.architecture.model_type}: a drafter has no loss of its own to measure")
        parts = parts_of(plan, choices)
        if not any(part.is_free for part in parts):
            raise UsageError(
                "the recipe leaves nothing to choose",
                hint="roles of `pack` and `bits` are chosen, unless a rule says their bits; --choice names packings",
            )
        return cls(plan, parts, lay_out(plan).tensor_bytes - sum(part.nbytes(part.base) for part in parts))

    @property
    def free(self) -> tuple[Part, ...]:
        """The parts that are decided on."""
        return tuple(part for part in self.parts if part.is_free)

    @property
    def params(self) -> int:
        """Weights of the source that are decided on; those of a tied head are the embedding's."""
        pair = {part.name for part in self._pair if part.is_free}
        return sum(part.params for part in self.free if part.name not in pair) + max(
            (part.params for part in self._pair if part.name in pair), default=0
        )

    @property
    def fixed_bytes(self) -> int:
        """Bytes of everything that is not decided on."""
        fixed = [part for part in self.parts if part.name not in self._decided]
        tied = bool(self._pair) and all(part in fixed and part.base is None for part in self._pair)
        return self.rest + sum(part.nbytes(part.base) for part in fixed) - (self._pair[0].nbytes(None) if tied else 0)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tensors where every part that is decided on is kept."""
        return self.nbytes({part.name: None if part.is_free else part.base for part in self.parts})

    def nbytes(self, assignment: Assignment) -> int:
        """Bytes of all tensors under an assignment."""
        pair = self._pair
        whole = self.rest + sum(part.nbytes(assignment[part.name]) for part in self.parts)
        tied = bool(pair) and all(assignment[part.name] is None for part in pair)
        return whole - (pair[0].nbytes(None) if tied else 0)

    @property
    def shape_bytes(self) -> int:
        """Bytes in which the shapes of packed weights are stored: 16 each, which no one counts as bits of a weight."""
        return sum(_SHAPE * len(part.weights) for part in self.free)

    def bits(self, nbytes: int) -> float:
        """Bits per weight that is decided on, of an output of so many bytes."""
        return 8 * (nbytes - self.fixed_bytes - self.shape_bytes) / self.params

    @property
    def kept_bits(self) -> float:
        """Bits per weight that is decided on, of weights that are all kept: without the shapes that packing stores."""
        return 8 * (self.kept_bytes - self.fixed_bytes) / self.params

    @property
    def smallest_bytes(self) -> int:
        """Bytes of all tensors of the smallest output."""
        smallest = (min(self._bytes_of(parts, one) for one in _options(parts)) for parts in self._together)
        return self.fixed_bytes + sum(smallest)

    def without(self, refused: Mapping[str, Collection[Form]]) -> "Problem":
        """The same with fewer choices.

        Args:
            refused: packings that parts may not have, by the pattern of their names and their role.

        Raises:
            GateError: nothing is left for a part.
        """
        parts = tuple(part.without(refused.get(part.kind, ())) for part in self.parts)
        if bare := dict.fromkeys(part.kind for part in parts if not part.forms):
            raise GateError(
                "no choice of packing is left that the engines load",
                offenders=[f"{kind}: {', '.join(map(label_of, refused[kind]))} refused" for kind in bare],
                hint="--choice 16 lets a part be kept",
            )
        return replace(self, parts=parts)

    def uniform(self) -> Iterator[tuple[str, Assignment]]:
        """Yield name and assignment of one packing for all free parts, or the next smaller where it does not fit."""
        for form in dict.fromkeys(form for part in self.free for form in part.forms):
            yield (
                f"all {label_of(form)}",
                {part.name: _nearest(part, form) if part.is_free else part.base for part in self.parts},
            )

    def frontier(self, losses: Losses) -> "Solved":
        """The best assignments by size."""
        items, forms = [], []
        for parts in self._together:
            options = tuple(_options(parts))
            found = (Option(self._bytes_of(parts, one), _loss(losses, one)) for one in options)
            items.append(Item(" and ".join(part.name for part in parts), tuple(found)))
            forms.append(options)
        return Solved(self, Frontier.of(items), tuple(forms))

    @property
    def _decided(self) -> frozenset[str]:
        """Names of the parts in items that have a choice."""
        return frozenset(part.name for parts in self._together for part in parts)

    @property
    def _together(self) -> tuple[tuple[Part, ...], ...]:
        """Free parts one by one, and a tied head with its embedding if either is free."""
        pair = self._pair if any(part.is_free for part in self._pair) else ()
        single = tuple((part,) for part in self.free if part not in pair)
        return (*single, pair) if pair else single

    @property
    def _pair(self) -> tuple[Part, ...]:
        """Embedding and head, where the source has one tensor for both and a recipe makes two of it."""
        tables = tuple(part for part in self.parts if part.role in {PackRole.EMBEDDING, PackRole.LM_HEAD})
        return tables if len({part.weights[0].segment.source for part in tables}) < len(tables) else ()

    def _bytes_of(self, parts: Sequence[Part], forms: Assignment) -> int:
        if len(parts) > 1 and all(form is None for form in forms.values()):
            return parts[0].nbytes(None)
        return sum(part.nbytes(forms[part.name]) for part in parts)


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """The frontier of a problem.

    Args:
        problem: the problem.
        frontier: of its items.
        forms: packings by part of each option of each item.
    """

    problem: Problem
    frontier: Frontier
    forms: tuple[tuple[Assignment, ...], ...]

    def within(self, nbytes: int) -> Assignment:
        """The assignment that loses least in an output of so many bytes, not less than the smallest."""
        return self._assignment(self.frontier.within(nbytes - self.problem.fixed_bytes))

    def corner(self, place: int) -> Assignment:
        """One of the assignments that no other beats, from the smallest on."""
        return self._assignment(self.frontier.corner(place))

    def loss_of(self, assignment: Assignment) -> float:
        """Sum of the losses of single changes."""
        choice = (options.index(self._own(options[0], assignment)) for options in self.forms)
        return self.frontier.loss(tuple(choice))

    @property
    def losses(self) -> Sequence[float]:
        """Losses of the assignments that no other beats, from the smallest on."""
        found: list[float] = self.frontier.best[self.frontier.corners].tolist()
        return found

    def drawn(self) -> Iterator[tuple[int, float]]:
        """Yield size and loss of assignments that no other beats, a few hundred of all of them."""
        count = len(self.frontier.corners)
        for number in range(min(_DRAWN, count)):
            choice = self.frontier.corner(number * (count - 1) // max(1, min(_DRAWN, count) - 1))
            yield self.problem.fixed_bytes + self.frontier.nbytes(choice), self.frontier.loss(choice)

    @staticmethod
    def _own(like: Assignment, assignment: Assignment) -> Assignment:
        """The packings of the parts of one item."""
        return {name: assignment[name] for name in like}

    def _assignment(self, choice: Sequence[int]) -> Assignment:
        found = {part.name: part.base for part in self.problem.parts}
        for options, place in zip(self.forms, choice, strict=True):
            found |= options[place]
        return found


def parts_of(plan: Plan, choices: Sequence[Form] = ()) -> tuple[Part, ...]:
    """The parts of a plan, those of the vision tower aside: they are kept, or packed as a whole.

    Args:
        plan: the plan.
        choices: packings that free parts may have; without any, no part is free.
    """
    return tuple(_parts(plan, choices))


def _parts(plan: Plan, choices: Sequence[Form]) -> Iterator[Part]:
    """Yield the parts of a plan."""
    base = {step.weight.name: step.packing for step in plan.quantized}
    grouped: dict[Unit, list[Packable]] = {}
    for one in packable_of(plan):
        if one.role is PackRole.VISION_TOWER:
            _refuse_rules_of_towers(plan.recipe, one)
        else:
            role = Role.ATTENTION if one.weight.role is Role.KV_SHARED else one.weight.role
            grouped.setdefault(unit_of(one.weight.module, role, plan.inventory.architecture), []).append(one)
    for unit, members in grouped.items():
        weights = tuple(one.weight for one in members)
        form = base.get(weights[0].name)
        forms = tuple(_fitting(weights, choices)) if _is_free(plan.recipe, members) else ()
        yield Part(unit, members[0].role, weights, forms if len(forms) > 1 else (form,), form)


def _is_free(recipe: Recipe, members: Iterable[Packable]) -> bool:
    """Return whether a recipe packs a role, and no rule says the bits of these."""
    ruled = any(rule.bits is not None and applies(recipe, rule, one) for one in members for rule in recipe.rules)
    role = next(iter(members)).role
    return not ruled and recipe.bits.get(role, 0 if role in recipe.pack else KEPT_BITS) != KEPT_BITS


def _fitting(weights: Sequence[Weight], choices: Iterable[Form]) -> Iterator[Form]:
    """Yield the packings whose groups divide the rows of all weights, each that makes other tensors."""
    seen = set()
    for form in choices:
        if form is not None and any(weight.shape[1] % (form.group_size or _WORD) for weight in weights):
            continue
        key = None if form is None else (form.num_bits, *(form.group_size or weight.shape[1] for weight in weights))
        if key not in seen:
            seen.add(key)
            yield form


def _refuse_rules_of_towers(recipe: Recipe, one: Packable) -> None:
    """Refuse rules on a tower: a text says nothing of it, and a recipe that is written has none for it."""
    ruled = [rule.text for rule in recipe.rules if applies(recipe, rule, one)]
    if ruled:
        raise UsageError(
            "a fit writes no rules for the vision tower, whose loss no text shows",
            offenders=ruled,
            hint="keep it, or pack all of it with `bits`",
        )


def _nearest(part: Part, form: Form) -> Form:
    """A packing, or the largest of a part's that is smaller; the smallest where none is."""
    most = part.nbytes(form)
    smaller = [one for one in part.forms if part.nbytes(one) <= most]
    if form in part.forms or not smaller:
        return form if form in part.forms else min(part.forms, key=part.nbytes)
    return max(smaller, key=part.nbytes)


def _options(parts: Sequence[Part]) -> Iterator[Assignment]:
    """Yield every combination of packings."""
    names = [part.name for part in parts]
    for forms in product(*(part.forms for part in parts)):
        yield dict(zip(names, forms, strict=True))


def _loss(losses: Losses, forms: Assignment) -> float:
    """The sum of the losses of some parts; a part that is kept loses nothing."""
    return sum(losses[name][label_of(form)] for name, form in forms.items() if form is not None)
