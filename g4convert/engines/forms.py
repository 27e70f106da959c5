"""Faults of loading that do not depend on the number of GPUs, as remarks."""

from collections.abc import Iterator
from typing import Final

from g4convert.engines.contract import Contract, OnUnknown
from g4convert.engines.faults import FaultKind, ModuleFault, judge
from g4convert.engines.groups import WrongScheme, grouped_modules, misfits, misfits_of_all
from g4convert.engines.module import ModuleKind
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.weights import Weights, label
from g4convert.names import Name

_AGAIN: Final = (Remedy("quantize the source again"),)
_ZERO_POINTS: Final = Reason(
    "a packed table has no parameter for `weight_zero_point`: stops with an error",
    source="quantization/compressed_tensors/compressed_tensors_embedding.py:106",
)
ONE_TARGET: Final = "targets that hold in every engine: patterns for whole layers, such as `re:.*self_attn.*`"

ONE_SCHEME: Final = "a config group that says how the weights are stored, or weights that are stored as it says"


def wrong_forms(weights: Weights, contract: Contract) -> tuple[Remark, ...]:
    """Return a remark for each kind of module that an engine would not load correctly."""
    kinds = {_kind(weights, one): one for one in _problems(weights, contract)}
    forms = (_remark(weights, contract, one) for one in kinds.values())
    groups = _other_groups(weights, contract)
    return tuple(dict.fromkeys((*forms, *groups, *_tables(weights, contract))))


def _tables(weights: Weights, contract: Contract) -> Iterator[Remark]:
    """Yield a remark for each packed table with zero points, for which no engine has a parameter."""
    for one in grouped_modules(contract, weights):
        symmetric = weights.schemes[one.shard].symmetric
        if one.module.kind is ModuleKind.EMBEDDING and one.shard in weights.packed and symmetric is False:
            yield Remark(Topic.REFUSED, label(one.module), _ZERO_POINTS, role=weights.roles.get(one.shard))


def _problems(weights: Weights, contract: Contract) -> Iterator[ModuleFault]:
    reading = contract.read(weights.architecture, weights.ignore, weights.targets or ())
    for one in judge(contract, weights.architecture, reading, weights.forms):
        if weights.targets is None and one.fault is not FaultKind.MISSING:
            continue  # without a config section, modules are built plain and are stored plain
        if one.fault is not FaultKind.MISSING or not _unread(weights, one):
            yield one


def _kind(weights: Weights, problem: ModuleFault) -> tuple[object, ...]:
    """Return a key that is equal for problems that one remark can report together."""
    detail = None if problem.fault is FaultKind.PARTS else problem.detail
    return problem.fault, label(problem.module), detail, weights.roles.get(problem.shard)


def _unread(weights: Weights, problem: ModuleFault) -> bool:
    """Return whether a problem is about the keys or values of a layer that uses an earlier layer's."""
    shard = Name(problem.shard)
    layer = shard.decoder_layer
    return (
        layer is not None and shard.last in {"k_proj", "v_proj"} and weights.architecture.text.layers[layer].kv_shared
    )


def _remark(weights: Weights, contract: Contract, problem: ModuleFault) -> Remark:
    subject, role = label(problem.module), weights.roles.get(problem.shard)
    match problem.fault:
        case FaultKind.REFUSED:
            return Remark(Topic.REFUSED, subject, problem.detail, role=role)
        case FaultKind.MISSING:
            return Remark(Topic.MISSING, subject, Reason(f"not stored: {contract.on_missing}"), _AGAIN, role)
    stops = contract.on_unknown is OnUnknown.RAISES or problem.fault in {FaultKind.PARTS, FaultKind.UNNAMED}
    then = "stops with an error" if stops else f"{contract.on_missing}"
    detail = f" ({problem.detail})" if problem.detail and problem.fault is not FaultKind.PARTS else ""
    return Remark(Topic.FORM, subject, Reason(f"{problem.fault}{detail}: {then}"), role=role)


def _other_groups(weights: Weights, contract: Contract) -> Iterator[Remark]:
    """Yield a remark for each module that the engine builds by a config group that differs from the stored scheme."""
    found = [*misfits(contract, weights)]
    of_all = {(one.shard, one.group) for one in misfits_of_all(weights) if not one.engines} if found else set()
    for one in found:
        yield _other_group(weights, one, ONE_SCHEME if (one.shard, one.group) in of_all else ONE_TARGET)


def _other_group(weights: Weights, misfit: WrongScheme, remedy: str) -> Remark:
    part = Name(misfit.shard).projection
    subject = label(misfit.module) if misfit.module.name.endswith(part) else f"{label(misfit.module)} ({part})"
    reason = Reason(f"built by config_groups.{misfit.group}: {misfit.difference}")
    return Remark(Topic.STORED, subject, reason, (Remedy(remedy),), weights.roles.get(misfit.shard))
