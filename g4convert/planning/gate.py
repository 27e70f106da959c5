"""Verdicts of engines on a plan: its weights as they meet them, and the gate of a recipe's `engines`."""

from collections.abc import Collection, Mapping
from typing import Any

from g4convert.engines.limits import Packing
from g4convert.engines.verdicts import Loads, Verdict, refuse, verdicts
from g4convert.engines.weights import Weights
from g4convert.gemma4 import Role
from g4convert.planning.quantization_config import quantization_config
from g4convert.planning.steps import Plan

__all__ = ["hold", "planned_weights", "refusing"]

_TABLES = {Role.EMBEDDING, Role.PLE_EMBEDDING}


def planned_weights(plan: Plan, config: Mapping[str, Any]) -> Weights:
    """The output of a plan, as engines will meet it.

    Args:
        plan: what would be written.
        config: its `quantization_config`; empty when nothing is packed.
    """
    source = plan.inventory.architecture
    dropped = {drop.source.name for drop in plan.dropped}
    packing = Packing(plan.recipe.num_bits, plan.recipe.group_size)
    packed = {step.packed.name.removesuffix(".weight_packed"): packing for step in plan.quantized}
    shapes, roles = {}, {}
    for weight in plan.inventory.weights:
        name = weight.name if plan.architecture is source else source.text_name(weight.name)
        if name and (weight.linear or weight.role in _TABLES) and weight.segment.source not in dropped:
            module = name.removesuffix(".weight")
            shapes[module], roles[module] = weight.shape, weight.role
    stacked = frozenset(module for module, role in roles.items() if role is Role.EXPERTS and module not in packed)
    if not config:
        return Weights(plan.architecture, shapes, roles, packed, stacked)
    targets = config["config_groups"]["group_0"]["targets"]
    return Weights(plan.architecture, shapes, roles, packed, stacked, tuple(config["ignore"]), tuple(targets))


def hold(plan: Plan, tps: Collection[int]) -> None:
    """Hold a plan against the engines that its recipe names.

    Args:
        plan: what would be written.
        tps: the tensor parallel sizes that it must load at.

    Raises:
        GateError: one of the engines cannot load it; or no list of entries describes what is packed.
    """
    engines = tuple(engine.value for engine in plan.recipe.engines)
    if engines:
        refuse(_weights(plan), engines, tps)


def refusing(plan: Plan, tps: Collection[int]) -> tuple[Verdict, ...]:
    """The verdicts of engines that cannot load a plan's output, whatever engines its recipe names.

    Args:
        plan: what was written.
        tps: tensor parallel sizes to judge.
    """
    return tuple(one for one in verdicts(_weights(plan), tps=tps) if one.loads is Loads.NO)


def _weights(plan: Plan) -> Weights:
    return planned_weights(plan, quantization_config(plan) if plan.quantized else {})
