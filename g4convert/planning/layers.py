"""Packed Linears of each decoder layer: the unit of a method that goes layer by layer."""

from collections.abc import Mapping

from g4convert.gemma4 import Role
from g4convert.planning.plan import Plan

_IN_LAYERS = {Role.ATTENTION, Role.MLP, Role.EXPERTS}


def layer_steps(plan: Plan) -> Mapping[int, Mapping[str, int]]:
    """Return the Linears that are calibrated layer by layer.

    Returns:
        By layer, in order: index into `plan.quantized` by the path inside the layer, such as `self_attn.q_proj` and
        `experts.3.down_proj`. Nothing with a method that looks at weights alone.
    """
    if not plan.recipe.is_layered:
        return {}
    steps_by_layer: dict[int, dict[str, int]] = {}
    for number, step in enumerate(plan.quantized):
        module, layer = step.weight.module, step.weight.module.decoder_layer
        if step.weight.role in _IN_LAYERS and layer is not None:
            steps_by_layer.setdefault(layer, {})[module.in_layer] = number
    return dict(sorted(steps_by_layer.items()))
