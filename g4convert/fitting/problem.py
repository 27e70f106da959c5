"""Choices of a packing for each part of a model: the bytes they take, and the best of them for every size.

A tied head and its embedding are one tensor while both are kept, and two tensors as soon as either is packed. So these
two parts form one item of the frontier, and its options are pairs of packings.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from g4convert.errors import GateError, UnsupportedError, UsageError
from g4convert.fitting.choices import Form, label_form
from g4convert.fitting.frontier import Decision, Frontier, Option
from g4convert.fitting.parts import Part, find_parts
from g4convert.planning.layout import lay_out
from g4convert.planning.plan import Plan
from g4convert.planning.rules import PackRole

Assignment = Mapping[str, Form]
"""Packing of each part, by part name."""
Losses = Mapping[str, Mapping[str, float]]
"""Loss by part name and packing label; a kept part has no entry, its loss is 0."""

_MAX_DRAWN = 300  # most points of the frontier in the plot
_SHAPE_BYTES = 16  # bytes of a weight_shape


@dataclass(frozen=True, slots=True)
class Problem:
    """Parts of a model and their allowed packings.

    Args:
        plan: plan of the base recipe.
        parts: every part of the decoder that a recipe may pack, in the canonical order.
        rest: bytes of all tensors outside the parts.
    """

    plan: Plan
    parts: tuple[Part, ...]
    rest: int

    @classmethod
    def of(cls, plan: Plan, choices: Sequence[Form]) -> "Problem":
        """Find the parts of a plan.

        Args:
            plan: plan of the base recipe.
            choices: packings allowed for free parts; each part leaves out those whose groups do not divide its rows.

        Raises:
            UnsupportedError: the model is a drafter; its loss shows only in the model it drafts for.
            UsageError: a rule of the recipe sets the vision tower's packing, or no part is free.
        """
        if plan.architecture.is_assistant:
            raise UnsupportedError(f"{plan.architecture.model_type}: a drafter has no loss of its own to measure")
        parts = find_parts(plan, choices)
        if not any(part.is_free for part in parts):
            raise UsageError(
                "the recipe leaves nothing to choose",
                hint="roles of `pack` and `bits` are chosen, unless a rule says their bits; --choice names packings",
            )
        return cls(plan, parts, lay_out(plan).tensor_bytes - sum(part.nbytes(part.base) for part in parts))

    @property
    def free(self) -> tuple[Part, ...]:
        """Parts with more than one allowed packing."""
        return tuple(part for part in self.parts if part.is_free)

    @property
    def params(self) -> int:
        """Number of source weight values in free parts; a tied head and its embedding count once."""
        pair = {part.name for part in self._pair if part.is_free}
        return sum(part.params for part in self.free if part.name not in pair) + max(
            (part.params for part in self._pair if part.name in pair), default=0
        )

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all tensors whose packing is fixed, that of the fixed half of a tied pair included."""
        halves = (part for part in self.parts if not part.is_free and part.name in self._decided_names)
        return self.outside + sum(part.nbytes(part.base) for part in halves)

    @property
    def outside(self) -> int:
        """Bytes of all tensors outside the frontier's items."""
        decided = self._decided_names
        fixed = [part for part in self.parts if part.name not in decided]
        tied = bool(self._pair) and all(part in fixed and part.base is None for part in self._pair)
        return self.rest + sum(part.nbytes(part.base) for part in fixed) - (self._pair[0].nbytes(None) if tied else 0)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tensors if every free part is kept."""
        return self.nbytes({part.name: None if part.is_free else part.base for part in self.parts})

    def nbytes(self, assignment: Assignment) -> int:
        """Return the bytes of all tensors under `assignment`."""
        pair = self._pair
        whole = self.rest + sum(part.nbytes(assignment[part.name]) for part in self.parts)
        tied = bool(pair) and all(assignment[part.name] is None for part in pair)
        return whole - (pair[0].nbytes(None) if tied else 0)

    @property
    def shape_bytes(self) -> int:
        """Bytes of the free parts' `weight_shape` tensors, 16 each; they do not count as bits per weight."""
        return sum(_SHAPE_BYTES * len(part.weights) for part in self.free)

    def bits(self, nbytes: int) -> float:
        """Return bits per weight of the free parts in an output of `nbytes`."""
        return 8 * (nbytes - self.fixed_bytes - self.shape_bytes) / self.params

    @property
    def kept_bits(self) -> float:
        """Bits per weight of the free parts if all are kept; there are no `weight_shape` tensors then."""
        return 8 * (self.kept_bytes - self.fixed_bytes) / self.params

    @property
    def smallest_bytes(self) -> int:
        """Bytes of all tensors in the smallest possible output."""
        smallest = (min(self._bytes_of(parts, forms) for forms in _combine_forms(parts)) for parts in self._items)
        return self.outside + sum(smallest)

    def without(self, refused: Mapping[str, Collection[Form]]) -> "Problem":
        """Return the problem without some packings.

        Raises:
            GateError: a part has no allowed packing left.
        """
        parts = tuple(part.without(refused.get(part.kind, ())) for part in self.parts)
        if bare := dict.fromkeys(part.kind for part in parts if not part.forms):
            raise GateError(
                "no choice of packing is left that the engines load",
                offenders=[f"{kind}: {', '.join(map(label_form, refused[kind]))} refused" for kind in bare],
                hint="--choice 16 lets a part be kept",
            )
        return replace(self, parts=parts)

    def assign_uniformly(self) -> Iterator[tuple[str, Assignment]]:
        """Yield name and assignment of each packing on all free parts; a part that lacks it takes its next smaller."""
        for form in dict.fromkeys(form for part in self.free for form in part.forms):
            yield (
                f"all {label_form(form)}",
                {part.name: _choose_nearest(part, form) if part.is_free else part.base for part in self.parts},
            )

    def solve(self, losses: Losses) -> "SolvedProblem":
        """Return the best assignment for every size."""
        items, forms = [], []
        for parts in self._items:
            options = tuple(_combine_forms(parts))
            choices = (
                Option(self._bytes_of(parts, assignment), _add_losses(losses, assignment)) for assignment in options
            )
            items.append(Decision(" and ".join(part.name for part in parts), tuple(choices)))
            forms.append(options)
        return SolvedProblem(self, Frontier.of(items), tuple(forms))

    @property
    def _decided_names(self) -> frozenset[str]:
        """Names of the parts in the frontier's items."""
        return frozenset(part.name for parts in self._items for part in parts)

    @property
    def _items(self) -> tuple[tuple[Part, ...], ...]:
        """Items of the frontier: each free part alone, but a tied head with its embedding if either is free."""
        pair = self._pair if any(part.is_free for part in self._pair) else ()
        single = tuple((part,) for part in self.free if part not in pair)
        return (*single, pair) if pair else single

    @property
    def _pair(self) -> tuple[Part, ...]:
        """Embedding and tied head, which share one tensor of the source; empty if the head is not tied."""
        tables = tuple(part for part in self.parts if part.role in {PackRole.EMBEDDING, PackRole.LM_HEAD})
        return tables if len({part.weights[0].segment.source for part in tables}) < len(tables) else ()

    def _bytes_of(self, parts: Sequence[Part], forms: Assignment) -> int:
        if len(parts) > 1 and all(form is None for form in forms.values()):
            return parts[0].nbytes(None)
        return sum(part.nbytes(forms[part.name]) for part in parts)


@dataclass(frozen=True, slots=True, eq=False)
class SolvedProblem:
    """The solved frontier of a problem."""

    problem: Problem
    frontier: Frontier
    forms: tuple[tuple[Assignment, ...], ...]

    def within(self, nbytes: int) -> Assignment:
        """Return the assignment with the least loss in `nbytes` of tensors, which must hold the smallest output."""
        return self._assign(self.frontier.within(nbytes - self.problem.outside))

    def corner(self, place: int) -> Assignment:
        """Return assignment number `place` of those that no other beats, counted from the smallest."""
        return self._assign(self.frontier.corner(place))

    def loss_of(self, assignment: Assignment) -> float:
        """Return the predicted loss: the sum of the losses of single changes."""
        choice = (options.index(self._select_item(options[0], assignment)) for options in self.forms)
        return self.frontier.loss(tuple(choice))

    @property
    def losses(self) -> Sequence[float]:
        """Predicted losses of the assignments that no other beats, from the smallest size on."""
        corner_losses: list[float] = self.frontier.best[self.frontier.corners].tolist()
        return corner_losses

    def sample_corners(self) -> Iterator[tuple[int, float]]:
        """Yield size and loss of at most `_MAX_DRAWN` assignments that no other beats, spread evenly."""
        count, outside = len(self.frontier.corners), self.problem.outside
        for number in range(min(_MAX_DRAWN, count)):
            choice = self.frontier.corner(number * (count - 1) // max(1, min(_MAX_DRAWN, count) - 1))
            yield outside + self.frontier.nbytes(choice), self.frontier.loss(choice)

    @staticmethod
    def _select_item(like: Assignment, assignment: Assignment) -> Assignment:
        """Cut `assignment` down to the parts of one item."""
        return {name: assignment[name] for name in like}

    def _assign(self, choice: Sequence[int]) -> Assignment:
        assignment = {part.name: part.base for part in self.problem.parts}
        for options, place in zip(self.forms, choice, strict=True):
            assignment |= options[place]
        return assignment


def _choose_nearest(part: Part, form: Form) -> Form:
    """Return `form` if the part allows it, else its largest smaller packing, else its smallest packing."""
    most = part.nbytes(form)
    smaller = [candidate for candidate in part.forms if part.nbytes(candidate) <= most]
    if form in part.forms or not smaller:
        return form if form in part.forms else min(part.forms, key=part.nbytes)
    return max(smaller, key=part.nbytes)


def _combine_forms(parts: Sequence[Part]) -> Iterator[Assignment]:
    """Yield every combination of the parts' packings."""
    names = [part.name for part in parts]
    for forms in product(*(part.forms for part in parts)):
        yield dict(zip(names, forms, strict=True))


def _add_losses(losses: Losses, forms: Assignment) -> float:
    """Return the summed losses of parts; a kept part loses nothing."""
    return sum(losses[name][label_form(form)] for name, form in forms.items() if form is not None)
