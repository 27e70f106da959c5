"""The contract of an engine: how it reads a checkpoint, as values.

An engine first builds its modules, packed or plain as `targets` and `ignore` say for its own names, and only then reads
the tensors. So a checkpoint loads if both agree for every module. A `Contract` holds the facts to decide that
beforehand:

    modules     the engine's modules, the checkpoint modules that fill each, and the forms that each accepts
    matching    how entries of `ignore` and `targets` name modules
    needs       what a model must have for the engine to start
    on_unknown, on_missing, drops, blind     the fate of tensors that fit no module, and of modules without tensors

The facts are in `vllm`, `sglang` and `transformers`, each with the engine's file and line.
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
    Module,
    ModuleKind,
    ModuleRule,
    Renames,
    build,
    renamed,
    unbuilt,
)
from g4convert.engines.remarks import Remark
from g4convert.engines.spellings import Spellings
from g4convert.gemma4 import Architecture
from g4convert.names import Name

__all__ = [
    "Accepts",
    "Contract",
    "Cut",
    "Disagreement",
    "Matching",
    "Module",
    "ModuleKind",
    "OnMissing",
    "OnUnknown",
    "Reading",
]


class OnUnknown(StrEnum):
    """Treatment of a tensor that fits no module."""

    RAISES = "refused with an error"
    DROPS = "dropped without a word"
    WARNS = "dropped with a warning"


class OnMissing(StrEnum):
    """Treatment of a module whose tensors are missing."""

    SILENT = "uninitialised memory, without a word"
    LOGS = "uninitialised memory, with a warning in the log"
    RANDOM = "random numbers, with a warning in the log"


def _nothing(_: Architecture) -> Iterable[Remark]:
    return ()


@dataclass(frozen=True, slots=True)
class Contract:
    """Facts about one engine, in the versions that behave alike.

    Args:
        engine: `vllm`, `sglang` or `transformers`.
        title: the engine's usual spelling.
        versions: versions whose sources were read, such as `0.33` or `5.17 to 5.24`.
        rules: returns the rules from an architecture's checkpoint modules to the engine's modules.
        names: returns the renames of checkpoint modules, which are applied before the rules.
        paths: returns the renames from the engine's module names to the paths of tensors.
        matching: returns the rules by which entries name modules of an architecture.
        drops: descriptions of tensors that the engine drops without a message.
        on_unknown: treatment of other tensors that fit no module.
        on_missing: treatment of modules without tensors.
        spellings: other names of tensors that it reads.
        blind: descriptions of faults that the engine never notices.
        ignored: ends of names of tensors that it drops even if it stops at others that fit no module.
        stacks_experts: True if plain experts are 3-D parameters, which no entry reaches.
        needs: yields what a model lacks for the engine to start with it.
        caveats: yields what the engine computes badly in a model that it loads.
    """

    engine: str
    title: str
    versions: str
    rules: Callable[[Architecture], tuple[ModuleRule, ...]]
    names: Callable[[Architecture], Renames]
    paths: Callable[[Architecture], Renames]
    matching: Callable[[Architecture], Matching]
    drops: tuple[str, ...]
    spellings: Spellings
    on_unknown: OnUnknown
    on_missing: OnMissing
    blind: tuple[str, ...]
    stacks_experts: bool = False
    ignored: tuple[str, ...] = ()
    needs: Callable[[Architecture], Iterable[Remark]] = _nothing
    caveats: Callable[[Architecture], Iterable[Remark]] = _nothing

    @property
    def label(self) -> str:
        """Name and versions, as in `vLLM 0.33`."""
        return f"{self.title} {self.versions}"

    def stops_at(self, name: str) -> bool:
        """Return whether the engine stops at a tensor that fits no module."""
        return self.on_unknown is OnUnknown.RAISES and not name.endswith(self.ignored)

    def modules(self, architecture: Architecture) -> tuple[Module, ...]:
        """Return every Linear, embedding and head that the engine builds, in the order of the checkpoint.

        The engine leaves a checkpoint module aside that is no shard of these (`unbuilt`): in vLLM, the k_proj and
        v_proj of layers that use the keys and values of an earlier layer.
        """
        return _modules(self, architecture)

    def unbuilt(self, architecture: Architecture) -> Mapping[str, bool]:
        """Return checkpoint modules that the engine has no module for, each with True if it stops at their tensors."""
        return unbuilt(architecture, self.rules(architecture), self.names(architecture))

    def read(self, architecture: Architecture, ignore: Iterable[str], targets: Iterable[str] = ("Linear",)) -> Reading:
        """Return a config's entries as this engine reads them: `read(...).packs(module)`."""
        return _read(self, architecture, tuple(ignore), tuple(targets))

    def speller(self, architecture: Architecture) -> Callable[[str], str]:
        """Return a function from a checkpoint module or tensor to the name that the engine matches entries with.

        Each shard of a fused module has its own name. A module that the engine does not build, or that is neither a
        Linear nor an embedding, is only renamed.
        """
        known, renames = _lookups(self, architecture), self.names(architecture)
        return lambda name: known.get(name) or renamed(name, renames)


@lru_cache(maxsize=256)
def _read(contract: Contract, architecture: Architecture, ignore: tuple[str, ...], targets: tuple[str, ...]) -> Reading:
    return Reading.of(contract.matching(architecture), ignore, targets)


@lru_cache(maxsize=256)
def _modules(contract: Contract, architecture: Architecture) -> tuple[Module, ...]:
    return build(architecture, contract.rules(architecture), contract.names(architecture), contract.paths(architecture))


@lru_cache(maxsize=256)
def _lookups(contract: Contract, architecture: Architecture) -> Mapping[str, str]:
    """Return checkpoint module -> the name that entries are matched with; each expert keeps its own number."""
    reading = contract.read(architecture, ())
    found: dict[str, str] = {}
    for module in _modules(contract, architecture):
        if module.kind is ModuleKind.EXPERTS:
            found |= {shard: f"{module.name}.{Name(shard).in_experts}" for shard in module.shards}
        else:
            found |= {shard: reading.lookup_of(module, shard) for shard in module.shards or (LM_HEAD,)}
    return found
