"""Experts that stay packed, as an implementation of transformers' experts interface: `g4_w4a16`.

transformers calls the implementation that the config names, in place of the forward of `Gemma4TextExperts`. The
module keeps its class; its two 3-D parameters make way for buffers, the stored words of all experts stacked:

    gate_up_packed int32 [e, 2i, h/8]   gate_up_scale [e, 2i, groups]   for each expert gate's rows, then up's
    down_packed    int32 [e, h, i/8]    down_scale    [e, h, groups]    (and *_zero_point, if asymmetric)

`by_expert` is the reference for any device: it dequantizes one chosen expert at a time and sums in float32. `EXPERTS`
has the fused kernel for GPUs. A projection that is not packed stays a parameter; one module may have a packed and a
plain projection.

Letters: e experts, i intermediate size of one, h hidden size, t tokens, k experts of a token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers.activations import GELUTanh
from transformers.integrations.moe import ExpertsInterface

from g4convert.forward.modules import PackedWeight, packed_linear
from g4convert.forward.triton.packed import Packed, check_device_and_dtype

IMPLEMENTATION = "g4_w4a16"
"""Registered name of the implementation, for `model.set_experts_implementation`."""


@dataclass(frozen=True, slots=True)
class PackedProjection:
    """Shapes and dtypes of the buffers of one packed projection, `gate_up` or `down`, of all experts."""

    words: tuple[int, ...]
    scale: tuple[int, ...]
    scale_dtype: torch.dtype
    zero_point: tuple[int, ...] | None
    num_bits: int


def make_packed(experts: torch.nn.Module, projections: Mapping[str, PackedProjection]) -> None:
    """Replace parameters of an experts module by empty buffers for packed words.

    Args:
        experts: a `Gemma4TextExperts`, on any device.
        projections: packed projections by name, `gate_up` and `down`; a missing one keeps its parameter.
    """
    for name, packed in projections.items():
        weight: torch.Tensor = getattr(experts, f"{name}_proj")
        delattr(experts, f"{name}_proj")
        device = weight.device
        experts.register_buffer(f"{name}_packed", torch.empty(packed.words, dtype=torch.int32, device=device))
        experts.register_buffer(f"{name}_scale", torch.empty(packed.scale, dtype=packed.scale_dtype, device=device))
        zeros = None if packed.zero_point is None else torch.empty(packed.zero_point, dtype=torch.int32, device=device)
        experts.register_buffer(f"{name}_zero_point", zeros)
        setattr(experts, f"{name}_inputs", weight.shape[-1])
        setattr(experts, f"{name}_num_bits", packed.num_bits)


def projection(experts: torch.nn.Module, name: str) -> PackedWeight | torch.Tensor:
    """Return `gate_up` or `down` of all experts, packed or dense, [e, n, k]."""
    if not hasattr(experts, f"{name}_packed"):
        dense: torch.Tensor = getattr(experts, f"{name}_proj")
        return dense
    words, scale, zeros = (getattr(experts, f"{name}_{part}") for part in ("packed", "scale", "zero_point"))
    return PackedWeight(words, scale, zeros, getattr(experts, f"{name}_inputs"), getattr(experts, f"{name}_num_bits"))


def by_expert(
    experts: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Run each chosen expert on its tokens.

    Args:
        experts: a `Gemma4TextExperts`, packed or not.
        hidden_states: [t, h].
        top_k_index: chosen experts of each token, int64 [t, k].
        top_k_weights: router weights of these experts, float32 [t, k]; they include `per_expert_scale`.

    Returns:
        [t, h], in the dtype of `hidden_states`.
    """
    gate_up, down = projection(experts, "gate_up"), projection(experts, "down")
    act: Callable[[torch.Tensor], torch.Tensor] = experts.act_fn  # type: ignore[assignment] # a module
    total = torch.zeros(hidden_states.shape, dtype=torch.float32, device=hidden_states.device)
    for expert in torch.unique(top_k_index).tolist():
        token, place = torch.where(top_k_index == expert)
        gate, up = _times(hidden_states[token], gate_up[expert]).chunk(2, dim=-1)
        out = _times(act(gate) * up, down[expert])
        total.index_add_(0, token, out.float() * top_k_weights[token, place, None].float())
    return total.to(hidden_states.dtype)


def _times(x: torch.Tensor, weight: PackedWeight | torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight) if isinstance(weight, torch.Tensor) else packed_linear(x, weight)


def fused_experts(
    experts: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Compute `by_expert` with the kernels for GPUs; fall back to `by_expert` for weights that they do not read.

    Raises:
        UnsupportedError: a dtype of `hidden_states` that the kernels do not take.
        EnvironmentFault: a GPU that is too old, or no Triton.
    """
    weights = [projection(experts, "gate_up"), projection(experts, "down")]
    packed = [Packed(w.words, w.scale) for w in weights if isinstance(w, PackedWeight) and w.fits_kernels]
    if len(packed) < 2 or not isinstance(experts.act_fn, GELUTanh):
        return by_expert(experts, hidden_states, top_k_index, top_k_weights)
    check_device_and_dtype(hidden_states.device, hidden_states.dtype)
    from g4convert.forward.triton import fused  # noqa: PLC0415 - needs Triton

    return fused.moe(hidden_states, top_k_index, top_k_weights, *packed)


EXPERTS: dict[str, Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cpu": by_expert,
    "cuda": fused_experts,
}
"""Functions that run the experts, by device type; `by_expert` runs on any other device."""


def _experts_forward(
    experts: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    run = EXPERTS.get(hidden_states.device.type, by_expert)
    return run(experts, hidden_states, top_k_index, top_k_weights)


ExpertsInterface.register(IMPLEMENTATION, _experts_forward)
