"""An engine's treatment of a checkpoint, as values.

An engine builds its modules, packed or plain as `targets` and `ignore` say under its own names, and only then looks
at the tensors. So a checkpoint loads when both sides agree for every module. A `Contract` says what is needed to
know that beforehand:

    modules     which checkpoint modules fill which module of the engine, what that is called and may be
    matching    how entries of `ignore` and `targets` name modules
    on_unknown, on_missing, drops, blind     what becomes of tensors that fit nothing, and of modules without

The facts stand in `vllm`, `sglang` and `transformers`, each with the engine's file and line.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from g4convert.engines.matching import Disagreement, Matching, Reading
from g4convert.engines.module import (
    LM_HEAD,
    Accepts,
    Cut,
    Kind,
    Module,
    Renames,
    Rule,
    build,
    left_out,
    renamed,
)
from g4convert.gemma4 import Architecture

__all__ = [
    "Accepts",
    "Contract",
    "Cut",
    "Disagreement",
    "Kind",
    "Matching",
    "Module",
    "OnMissing",
    "OnUnknown",
    "Reading",
]


class OnUnknown(StrEnum):
    """Treatment of a tensor that fits nothing."""

    RAISES = "refused with an error"
    DROPS = "dropped without a word"
    WARNS = "dropped with a warning"


class OnMissing(StrEnum):
    """Treatment of a module whose tensors are missing."""

    SILENT = "uninitialised memory, without a word"
    LOGS = "uninitialised memory, with a warning in the log"
    RANDOM = "random numbers, with a warning in the log"


@dataclass(frozen=True, slots=True)
class Contract:
    """One engine, in the versions that behave alike.

    Args:
        engine: `vllm`, `sglang` or `transformers`.
        title: the engine's usual spelling.
        versions: those that were read, such as `0.33` or `5.17 to 5.24`.
        rules: rules that turn the checkpoint modules of an architecture into the engine's.
        names: renames of checkpoint modules, before the rules.
        paths: from the names of its modules to where tensors are loaded.
        matching: matching of entries against the modules of an architecture.
        drops: tensors that are left aside without a word, for people.
        on_unknown: fate of other tensors that fit nothing.
        lenient_drafter: a drafter's tensors that fit nothing are dropped all the same.
        on_missing: fate of modules without tensors.
        blind: faults that the engine never notices, for people.
        stacks_experts: plain experts are 3-D parameters, which no entry reaches.
    """

    engine: str
    title: str
    versions: str
    rules: Callable[[Architecture], tuple[Rule, ...]]
    names: Callable[[Architecture], Renames]
    paths: Callable[[Architecture], Renames]
    matching: Callable[[Architecture], Matching]
    drops: tuple[str, ...]
    on_unknown: OnUnknown
    on_missing: OnMissing
    blind: tuple[str, ...]
    stacks_experts: bool = False
    lenient_drafter: bool = False

    @property
    def label(self) -> str:
        """Name and versions, as in `vLLM 0.33`."""
        return f"{self.title} {self.versions}"

    def modules(self, architecture: Architecture) -> tuple[Module, ...]:
        """Every Linear, embedding and head that the engine builds, in the order of the checkpoint.

        A checkpoint module that is a shard of none of them is left aside: in vLLM, the keys and values of layers
        that read those of an earlier one (`left_out`).
        """
        return _modules(self, architecture)

    def left_out(self, architecture: Architecture) -> Mapping[str, bool]:
        """Checkpoint modules that the engine has no module for, and whether their tensors are an error."""
        return left_out(architecture, self.rules(architecture), self.names(architecture))

    def unknown_in(self, architecture: Architecture) -> OnUnknown:
        """Return the treatment of a tensor that fits nothing."""
        return OnUnknown.DROPS if self.lenient_drafter and architecture.is_assistant else self.on_unknown

    def read(self, architecture: Architecture, ignore: Iterable[str], targets: Iterable[str] = ("Linear",)) -> Reading:
        """A config's entries as this engine reads them: `read(...).packs(module)`."""
        return _read(self, architecture, tuple(ignore), tuple(targets))

    def speller(self, architecture: Architecture) -> Callable[[str], str]:
        """Return a function that gives the name of a module or tensor as entries are tried on it.

        A shard of a fused module has a name of its own. What is no Linear and no embedding, and what the engine
        does not build, has the name it would have.
        """
        known, renames = _lookups(self, architecture), self.names(architecture)
        return lambda name: known.get(name) or renamed(name, renames)


@lru_cache(maxsize=64)
def _read(contract: Contract, architecture: Architecture, ignore: tuple[str, ...], targets: tuple[str, ...]) -> Reading:
    return Reading.of(contract.matching(architecture), ignore, targets)


@lru_cache(maxsize=64)
def _modules(contract: Contract, architecture: Architecture) -> tuple[Module, ...]:
    return build(architecture, contract.rules(architecture), contract.names(architecture), contract.paths(architecture))


@lru_cache(maxsize=64)
def _lookups(contract: Contract, architecture: Architecture) -> Mapping[str, str]:
    """Return the name that entries are tried on, by checkpoint module; each expert has its own number."""
    reading = contract.read(architecture, ())
    found: dict[str, str] = {}
    for module in _modules(contract, architecture):
        if module.kind is Kind.EXPERTS:
            found |= {shard: f"{module.name}.{shard.partition('.experts.')[2]}" for shard in module.shards}
        else:
            found |= {shard: reading.lookup_of(module, shard) for shard in module.shards or (LM_HEAD,)}
    return found
