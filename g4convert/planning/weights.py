"""Weights of a plan's output as engines will load them, with the lists of its config."""

from g4convert.engines.ignore import with_lists
from g4convert.engines.weights import Weights
from g4convert.gemma4 import TABLES, Role
from g4convert.names import Name
from g4convert.planning.plan import Plan


def make_planned_weights(plan: Plan) -> Weights:
    """Return the weights of a plan's output, with the `ignore` and `targets` of its config.

    Raises:
        GateError: no short list of entries describes the packed modules.
    """
    source = plan.inventory.architecture
    dropped = {drop.source.name for drop in plan.dropped}
    packed = {str(Name(step.packed.name).owner): step.packing for step in plan.quantized}
    shapes: dict[str, tuple[int, ...]] = {}
    roles: dict[str, Role] = {}
    for weight in plan.inventory.weights:
        name = source.name_in(plan.architecture, weight.name)
        if name and (weight.linear or weight.role in TABLES) and weight.segment.source not in dropped:
            module = str(Name(name).module)
            shapes[module], roles[module] = weight.shape, weight.role
    stacked = frozenset(module for module, role in roles.items() if role is Role.EXPERTS and module not in packed)
    return with_lists(Weights(plan.architecture, shapes, roles, packed, stacked))
