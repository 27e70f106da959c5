"""Contents of a quantized checkpoint, tensor by tensor, under the names its architecture knows.

The same tables that resolve a source resolve an output: a packed module is looked up as the weight it was made
from, fused experts stand for each of theirs. Nothing is refused here; what does not fit is listed, for the
checks to judge.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from g4convert.checkpoint.stored import PackedModule, packed_modules
from g4convert.gemma4 import Architecture, Expected, FusedExperts
from g4convert.gemma4.matching import Match, match_names
from g4convert.names import Name
from g4convert.tensors import TensorInfo

__all__ = ["Contents", "Form"]

Form = PackedModule | TensorInfo
"""Form of a stored weight: packed, or plain."""

_PARTS: Final = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}


@dataclass(frozen=True, slots=True)
class Contents:
    """An output's tensors by canonical name.

    Args:
        architecture: architecture whose names and shapes are looked for.
        expected: every tensor that the architecture may have, experts one by one.
        fused: the fused form of experts, by stored name.
        stored: form of each expected tensor; all experts of a fused tensor have that tensor's form.
        twice: canonical names held by more than one stored tensor, and those.
        torn: modules of which parts are there, but no `weight_packed`; and the parts.
        unknown: names that fit nothing; of packed modules, what the weight was called.
        spare: stored tensors that no loader needs: a tied head, the weight of a norm that has none.
        renamed: stored names that are not canonical, and what they mean.
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
    def of(cls, tensors: Mapping[str, TensorInfo], architecture: Architecture) -> "Contents":
        """Find out what every tensor of an output is.

        Args:
            tensors: every stored tensor, by name.
            architecture: architecture whose names and shapes are looked for.
        """
        forms = dict(_forms(tensors))
        match = match_names(forms, architecture)
        torn = _torn(match)
        parts = {part for found in torn.values() for part in found}
        return cls(
            architecture=architecture,
            expected=match.schema.expected,
            fused=match.schema.fused,
            stored={name: forms[source] for name, source in _expected_sources(match)},
            twice=dict(_twice(match, forms)),
            torn=torn,
            unknown=tuple(name for name in match.unknown if name not in parts),
            spare=dict(_spare(match, forms)),
            renamed={source: name for name, sources in match.sources.items() for source in sources if source != name},
        )

    @property
    def packed(self) -> Mapping[str, PackedModule]:
        """The packed weights in the form engines read, by canonical name; experts one by one."""
        return {name: form for name, form in self.stored.items() if isinstance(form, PackedModule) and not form.fused}

    @property
    def fused_packed(self) -> Mapping[str, PackedModule]:
        """Experts that are packed in one tensor for a layer, by canonical name of that tensor."""
        found = ((name, self.stored.get(fused.names[0])) for name, fused in self.fused.items())
        return {name: form for name, form in found if isinstance(form, PackedModule) and form.fused}

    @property
    def is_packed(self) -> bool:
        """True if anything is packed, in whatever form, or was."""
        return bool(self.packed or self.fused_packed or self.torn)

    def plain(self, name: str) -> TensorInfo | None:
        """The tensor of a weight that is not packed, for an expert perhaps that of all; None for the others."""
        form = self.stored.get(name)
        return form if isinstance(form, TensorInfo) else None


def _forms(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, Form]]:
    """Every weight by the name it had or has, packed ones first."""
    packed = packed_modules(tensors).values()
    owned = {info.name for module in packed for info in module.parts.values()}
    yield from ((module.weight_name, module) for module in packed)
    yield from ((name, info) for name, info in tensors.items() if name not in owned)


def _expected_sources(match: Match) -> Iterator[tuple[str, str]]:
    """Canonical name and stored name of every weight found, in the order of the architecture."""
    fused = {
        one: match.sources[name][0]
        for name, of in match.schema.experts.items()
        if name in match.sources
        for one in of.names
    }
    for name in match.schema.expected:
        if sources := match.sources.get(name):
            yield name, sources[0]
        elif name in fused:
            yield name, fused[name]


def _twice(match: Match, forms: Mapping[str, Form]) -> Iterator[tuple[str, tuple[str, ...]]]:
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


def _torn(match: Match) -> dict[str, tuple[str, ...]]:
    """Parts of modules whose words are gone."""
    torn: dict[str, tuple[str, ...]] = {}
    for name in match.unknown:
        module, part = Name(name).owner, Name(name).last
        if part in _PARTS and f"{module}.weight" in match.schema.expected:
            torn[module] = (*torn.get(module, ()), name)
    return torn


def _spare(match: Match, forms: Mapping[str, Form]) -> Iterator[tuple[str, Form]]:
    yield from ((source, forms[source]) for name in match.schema.droppable for source in match.sources.get(name, ()))
    yield from ((source, forms[source]) for source in match.derived)
