"""Match of a checkpoint's stored names with the canonical names of an architecture; shapes do not matter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.dialects import (
    body_of,
    prefix_habit,
    prefix_of,
    spell,
)
from g4convert.gemma4.roles import Expected
from g4convert.gemma4.schema import (
    Droppable,
    FusedExperts,
    droppable,
    expected_weights,
    fused_experts,
    is_derived,
    stacked_experts,
)
from g4convert.names import Name


@dataclass(frozen=True, slots=True)
class DialectUse:
    """A habit of spelling in a checkpoint.

    Args:
        name: short name of the habit.
        description: description in one line.
        count: number of source tensors that are spelled so.
        example: a source name and its canonical name.
    """

    name: str
    description: str
    count: int
    example: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Schema:
    """All canonical names of an architecture.

    Args:
        expected: every weight; experts one by one.
        fused: tensors that hold all experts of a layer, in the form of transformers.
        stacked: tensors that hold gate or up of all experts of a layer, in the form of MLX.
        droppable: tensors that a checkpoint may have and a conversion drops.
    """

    expected: Mapping[str, Expected]
    fused: Mapping[str, FusedExperts]
    stacked: Mapping[str, FusedExperts]
    droppable: Mapping[str, Droppable]

    @classmethod
    def of(cls, architecture: Architecture) -> "Schema":
        """Return the schema of an architecture."""
        fused, stacked = fused_experts(architecture), stacked_experts(architecture)
        return cls(expected_weights(architecture), fused, stacked, droppable(architecture))

    @property
    def experts(self) -> Mapping[str, FusedExperts]:
        """Every tensor that holds the experts of a layer, in both forms."""
        return {**self.fused, **self.stacked}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return (*self.expected, *self.fused, *self.stacked, *self.droppable)

    def __contains__(self, name: str) -> bool:
        return any(name in known for known in (self.expected, self.fused, self.stacked, self.droppable))


@dataclass(frozen=True, slots=True)
class Match:
    """The source tensor of each canonical name.

    Args:
        schema: tensors that were looked for.
        sources: canonical name -> source names that resolve to it; more than one source name is a fault.
        derived: source names of derived buffers, which a conversion drops.
        unknown: unknown source name -> its body, without wrappers and prefix.
        dialects: habits of spelling that were found.
    """

    schema: Schema
    sources: Mapping[str, tuple[str, ...]]
    derived: tuple[str, ...]
    unknown: Mapping[str, str]
    dialects: tuple[DialectUse, ...]


def match_names(names: Iterable[str], architecture: Architecture) -> Match:
    """Find the canonical name of each source name."""
    schema = Schema.of(architecture)
    ordered = sorted(names)
    sources = {name: (name,) for name in ordered if name in schema}
    strange = [name for name in ordered if name not in sources]
    uses: dict[str, DialectUse] = {}
    derived: list[str] = []
    unknown: dict[str, str] = {}
    bodies = {body_of(name): name for name in schema.names} if strange else {}
    kinds = frozenset(Name(body).unnumbered()[0] for body in bodies)
    spell_kind = cache(lambda kind: spell(kind, kinds))
    for source in strange:
        kind, numbers = Name(source).unnumbered()
        spelling = spell_kind(kind)
        body = Name(spelling.body).numbered(numbers)
        name = bodies.get(body)
        if name is not None:
            sources[name] = (*sources.get(name, ()), source)
            habits = {rule.name: rule.description for rule in spelling.rules}
            if spelling.prefix != prefix_of(name):
                habits |= [prefix_habit(spelling.prefix)]
            _count(uses, habits, (source, name))
        elif is_derived(body):
            derived.append(source)
        else:
            unknown[source] = body
    _count_single_experts(uses, schema, sources)
    return Match(schema, sources, tuple(derived), unknown, tuple(uses.values()))


def match_source(names: Iterable[str], architecture: Architecture) -> Match:
    """Find the canonical name of each name of a source; a tied head is the embedding where that is not stored.

    Of tensors that share their memory, `save_model` of safetensors stores the first in the alphabet, which is the
    head. transformers 5 ties the two either way; vLLM 0.33 stops at a head alone, so an output has the embedding.
    """
    match, table = match_names(names, architecture), f"{architecture.text_prefix}embed_tokens.weight"
    if "lm_head.weight" not in match.schema.droppable or table in match.sources:
        return match
    sources = dict(match.sources)
    held = sources.pop("lm_head.weight", None)
    if held is None:
        return match
    uses: dict[str, DialectUse] = {}
    _count(uses, {"tied-head": "the embedding by the name of the head that it is tied with"}, (held[0], table))
    return replace(match, sources={**sources, table: held}, dialects=(*match.dialects, *uses.values()))


def _count(uses: dict[str, DialectUse], habits: Mapping[str, str], example: tuple[str, str]) -> None:
    for name, description in habits.items():
        use = uses.get(name)
        first = use.example if use else example
        uses[name] = DialectUse(name, description, use.count + 1 if use else 1, first)


def _count_single_experts(uses: dict[str, DialectUse], schema: Schema, sources: Mapping[str, tuple[str, ...]]) -> None:
    """Add the habit of storing experts one by one, if any are: transformers 5 stores them fused."""
    single = [(fused, n) for fused, experts in schema.fused.items() for n in experts.names if n in sources]
    if single:
        (fused, name), described = single[0], "experts one by one, which transformers 5 fuses"
        uses["single-experts"] = DialectUse("single-experts", described, len(single), (sources[name][0], fused))
