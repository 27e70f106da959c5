"""Contents of a quantized checkpoint, tensor by tensor, under the canonical names of its architecture.

An output is resolved with the same tables as a source: a packed module under the name of its weight, a fused expert
tensor under the name of each expert. This module refuses nothing; it lists tensors that do not fit, for the checks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from g4convert.checkpoint.stored import PackedModule, packed_modules
from g4convert.gemma4 import Architecture, Expected, FusedExperts
from g4convert.gemma4.matching import Match, match_names, match_source
from g4convert.names import Name
from g4convert.tensors import TensorInfo

Form = PackedModule | TensorInfo
"""Form of a stored weight: packed, or plain."""

_PARTS: Final = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}


@dataclass(frozen=True, slots=True)
class Contents:
    """An output's tensors by canonical name.

    Args:
        architecture: architecture whose names and shapes are looked for.
        expected: every tensor that the architecture may have, each expert by itself.
        fused: the fused form of experts, by stored name.
        stored: form of each expected tensor; all experts of a fused tensor have that tensor's form.
        twice: canonical names that several stored tensors have, with the stored names.
        torn: modules with packed parts but no `weight_packed`, with these parts.
        unknown: names that match no expected tensor; for packed modules, the name of the weight.
        spare: stored tensors that no loader needs: a tied head, the weight of a norm that has none.
        renamed: stored names that are not canonical, with their canonical names.
    """

    architecture: Architecture
    expected: Mapping[str, Expected]
    fused: Mapping[str, FusedExperts]
    stored: Mapping[str, Form]
    twice: Mapping[str, tuple[str, ...]]
    torn: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    spare: Mapping[str, Form]
    renamed: Mapping[str, str]

    @classmethod
    def of(
        cls, tensors: Mapping[str, TensorInfo], architecture: Architecture, *, tied_both_ways: bool = False
    ) -> "Contents":
        """Return the contents of an output: every stored tensor under its canonical name.

        Args:
            tensors: every stored tensor, by name.
            architecture: architecture whose names and shapes are looked for.
            tied_both_ways: take a tied head for an embedding that is not stored, as transformers alone does.
        """
        forms = dict(forms_of(tensors))
        match = match_source(forms, architecture) if tied_both_ways else match_names(forms, architecture)
        torn = _parts_without_words(match)
        parts = {part for found in torn.values() for part in found}
        return cls(
            architecture=architecture,
            expected=match.schema.expected,
            fused=match.schema.fused,
            stored={name: forms[source] for name, source in _expected_sources(match)},
            twice=dict(_stored_twice(match, forms)),
            torn=torn,
            unknown=tuple(name for name in match.unknown if name not in parts),
            spare=dict(_spare_forms(match, forms)),
            renamed={source: name for name, sources in match.sources.items() for source in sources if source != name},
        )

    @property
    def packed(self) -> Mapping[str, PackedModule]:
        """Packed weights in the form that engines read, by canonical name, each expert by itself."""
        return {name: form for name, form in self.stored.items() if isinstance(form, PackedModule) and not form.fused}

    @property
    def fused_packed(self) -> Mapping[str, PackedModule]:
        """Experts packed as one tensor per layer, by that tensor's canonical name."""
        found = ((name, self.stored.get(fused.names[0])) for name, fused in self.fused.items())
        return {name: form for name, form in found if isinstance(form, PackedModule) and form.fused}

    @property
    def is_packed(self) -> bool:
        """True if any module is packed, in any form, or has parts of a packed module."""
        return bool(self.packed or self.fused_packed or self.torn)

    def plain(self, name: str) -> TensorInfo | None:
        """Return the tensor of a plain weight, for an expert possibly the fused tensor; None if it is not plain."""
        form = self.stored.get(name)
        return form if isinstance(form, TensorInfo) else None


def forms_of(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Form]]:
    """Yield every weight by its name before packing, packed weights first."""
    packed = packed_modules(tensors).values()
    owned = {info.name for module in packed for info in module.parts.values()}
    yield from ((module.weight_name, module) for module in packed)
    yield from ((name, info) for name, info in tensors.items() if name not in owned)


def _expected_sources(match: Match) -> Iterator[tuple[str, str]]:
    """Yield the canonical and the stored name of every weight found, in the order of the architecture."""
    fused = {
        one: match.sources[name][0]
        for name, expert_names in match.schema.experts.items()
        if name in match.sources
        for one in expert_names.names
    }
    for name in match.schema.expected:
        if sources := match.sources.get(name):
            yield name, sources[0]
        elif name in fused:
            yield name, fused[name]


def _stored_twice(match: Match, forms: Mapping[str, Form]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, sources in match.sources.items():
        form = forms[sources[0]]
        if len(sources) > 1:
            yield name, sources
        elif isinstance(form, PackedModule) and form.has_plain_weight:
            yield name, (f"{form.module}.weight_packed", form.weight_name)
    for name, fused in match.schema.experts.items():
        single = next((one for one in fused.names if one in match.sources), None)
        if single and name in match.sources:
            yield name, (match.sources[name][0], match.sources[single][0])


def _parts_without_words(match: Match) -> dict[str, tuple[str, ...]]:
    """Return the parts of each module that has no packed words."""
    torn: dict[str, tuple[str, ...]] = {}
    for name in match.unknown:
        module, part = Name(name).owner, Name(name).last
        if part in _PARTS and f"{module}.weight" in match.schema.expected:
            torn[module] = (*torn.get(module, ()), name)
    return torn


def _spare_forms(match: Match, forms: Mapping[str, Form]) -> Iterator[tuple[str, Form]]:
    yield from ((source, forms[source]) for name in match.schema.droppable for source in match.sources.get(name, ()))
    yield from ((source, forms[source]) for source in match.derived)
