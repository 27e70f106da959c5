"""Faults of each module when an engine loads a checkpoint.

    built by the entries    stored            result
    packed                  plain             the loader finds no parameter of that name, or leaves it uninitialised
    plain                   packed            the same, the other way round
    parts in two forms      any form          the engine stops
    any form                not accepted      the module loads and fails later, or is left aside

Entries are compared with every stored shard. A shard that is not stored is a separate fault, as most engines never
notice it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from g4convert.engines.contract import Contract
from g4convert.engines.matching import Disagreement, Reading
from g4convert.engines.module import LM_HEAD, Accepts, Module
from g4convert.engines.reason import Reason
from g4convert.gemma4 import Architecture

_NO_DETAIL: Final = Reason()


class Stored(StrEnum):
    """Form in which a checkpoint module is stored."""

    PACKED = "packed"
    PLAIN = "plain"
    STACKED = "plain, all experts of the layer in one tensor"


class FaultKind(StrEnum):
    """Kind of fault."""

    IGNORED = "packed, although ignored"
    UNTARGETED = "packed, although no target names it"
    TARGETED = "plain, although targeted and not ignored"
    PARTS = "the parts of one module in two forms"
    UNNAMED = "neither ignored nor targeted"
    REFUSED = "packed, which the engine does not take"
    MISSING = "not stored"


@dataclass(frozen=True, slots=True)
class ModuleFault:
    """A checkpoint module that an engine would not load correctly.

    Args:
        fault: kind of the fault.
        module: the engine's module.
        shard: the checkpoint module; for `PARTS` and `UNNAMED`, the first shard of the engine's module.
        detail: the names that differ, or the reason why the engine does not take the form; empty otherwise.
    """

    fault: FaultKind
    module: Module
    shard: str
    detail: Reason = _NO_DETAIL


def judge(
    contract: Contract, architecture: Architecture, reading: Reading, stored: Mapping[str, Stored]
) -> Iterator[ModuleFault]:
    """Yield the problems of an engine's modules with the stored ones.

    Args:
        contract: contract of the engine.
        architecture: architecture of the checkpoint.
        reading: `ignore` and `targets`, from `contract.read`.
        stored: canonical module -> stored form, without modules that are not stored.
    """
    spare = set(_unread(architecture))
    for module in contract.modules(architecture):
        built = reading.packs(module)
        if isinstance(built, Disagreement):
            yield _stop(built)
        named = _Named(reading.ignores(module), reading.targets_module(module)) if module.configured else None
        for shard in module.shards or (LM_HEAD,):
            form = stored.get(shard) if module.shards else Stored.PLAIN
            if form is None:
                yield from () if shard in spare else (ModuleFault(FaultKind.MISSING, module, shard),)
                continue
            if form is Stored.PACKED and module.accepts is Accepts.PLAIN:
                yield ModuleFault(FaultKind.REFUSED, module, shard, module.note)
            out_of_reach = form is Stored.STACKED and contract.stacks_experts
            if named and not out_of_reach and (fault := _misbuilt(reading, module, shard, form, named)):
                yield ModuleFault(fault, module, shard)


def _unread(architecture: Architecture) -> Iterator[str]:
    """Yield the k_proj and v_proj of layers that use an earlier layer's keys and values: engines never use them."""
    for n, layer in enumerate(architecture.text.layers):
        if layer.kv_shared:
            yield from (f"{architecture.text_prefix}layers.{n}.self_attn.{part}_proj" for part in "kv")


def _stop(built: Disagreement) -> ModuleFault:
    """Return a disagreement as the problem that the engine stops with."""
    shard = (built.module.shards or (LM_HEAD,))[0]
    if len(set(built.names.values())) == 1:
        return ModuleFault(FaultKind.UNNAMED, built.module, shard)
    sides = (f"{name} {'packed' if packed else 'ignored'}" for name, packed in built.names.items())
    return ModuleFault(FaultKind.PARTS, built.module, shard, Reason(", ".join(sides)))


@dataclass(frozen=True, slots=True)
class _Named:
    """Answers of `ignore` and `targets` about a module, looked up once for all of its shards."""

    ignored: bool | Disagreement
    targeted: bool


def _misbuilt(reading: Reading, module: Module, shard: str, form: Stored, named: _Named) -> FaultKind | None:
    ignored = named.ignored
    if isinstance(ignored, Disagreement):
        ignored = reading.ignores_name(module, reading.lookup_of(module, shard))
    if form is not Stored.PACKED:
        return FaultKind.TARGETED if named.targeted and not ignored else None
    if ignored:
        return FaultKind.IGNORED
    return None if named.targeted else FaultKind.UNTARGETED
