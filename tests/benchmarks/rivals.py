"""Other implementations of one layer of experts, or of one linear, for `gpu.py` to stand beside.

Each takes a `Layer` and gives a function to time, or raises `Unavailable` with the reason. Weights of packed rivals are
random words in the rival's own layout: their speed is compared, not their values. Written against vLLM 0.32 and
humming-kernels 0.1.19; none has been run on a GPU by the authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from g4convert.forward.triton.packed import Packed

GROUP = 32


class Unavailable(Exception):
    """Raised when a rival is not installed, or does not take the shape."""


@dataclass(frozen=True)
class Layer:
    """One forward of a layer: tokens, where they go, and packed weights."""

    x: torch.Tensor
    chosen: torch.Tensor
    share: torch.Tensor
    gate_up: Packed
    down: Packed


def grouped_mm(layer: Layer) -> Callable[[], torch.Tensor]:
    """bf16 weights and torch's grouped product: what transformers runs by default."""
    e, (t, h), top_k, i = len(layer.down.words), layer.x.shape, layer.chosen.shape[1], layer.down.k
    product = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)  # before torch 2.10
    if product is None:
        raise Unavailable(f"torch {torch.__version__} has no grouped_mm")
    like = {"device": layer.x.device, "dtype": torch.bfloat16}
    gate_up, down = (torch.randn(e, n, k, **like).mul_(k**-0.5).mT for n, k in ((2 * i, h), (h, i)))

    def run() -> torch.Tensor:
        chosen, order = layer.chosen.flatten().sort()
        ends = torch.searchsorted(chosen, torch.arange(1, e + 1, device=chosen.device)).to(torch.int32)
        rows = layer.x[order // top_k].bfloat16()
        gate, up = product(rows, gate_up, offs=ends).chunk(2, -1)
        y = product(functional.gelu(gate, approximate="tanh") * up, down, offs=ends)
        y = y * layer.share.flatten()[order, None].to(y.dtype)
        return torch.empty_like(y).index_copy_(0, order, y).view(t, top_k, h).sum(1)

    return run


def vllm_marlin(layer: Layer) -> Callable[[], torch.Tensor]:
    """The Marlin MoE of vLLM."""
    try:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # noqa: PLC0415 - may be missing
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe  # noqa: PLC0415 - the same
        from vllm.scalar_type import scalar_types  # noqa: PLC0415 - the same
    except ImportError as error:
        raise Unavailable(f"vLLM: {error}") from error
    e, h, i = len(layer.down.words), layer.x.shape[1], layer.down.k
    words = [
        torch.randint(-(1 << 31), 1 << 31, (e, k // 16, 2 * n), dtype=torch.int32, device=layer.x.device)
        for n, k in ((2 * i, h), (h, i))
    ]
    scales = [
        torch.ones(e, k // GROUP, n, dtype=torch.bfloat16, device=layer.x.device) for n, k in ((2 * i, h), (h, i))
    ]
    kind, act, ids = scalar_types.uint4b8.id, MoEActivation.GELU_TANH, layer.chosen.to(torch.int32)

    def run() -> torch.Tensor:
        return fused_marlin_moe(  # type: ignore[no-any-return]
            layer.x, *words, None, None, *scales, layer.share, ids, quant_type_id=kind, activation=act
        )

    return run


def vllm_triton(layer: Layer) -> Callable[[], torch.Tensor]:
    """The Triton MoE of vLLM, for int4."""
    try:
        from vllm.model_executor.layers.fused_moe import fused_experts  # noqa: PLC0415 - may be missing
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation  # noqa: PLC0415 - the same
        from vllm.model_executor.layers.fused_moe.config import int4_w4a16_moe_quant_config  # noqa: PLC0415 - the same
    except ImportError as error:
        raise Unavailable(f"vLLM: {error}") from error
    words = [weight.words.view(torch.uint8) for weight in (layer.gate_up, layer.down)]
    scales = [weight.scale.contiguous() for weight in (layer.gate_up, layer.down)]
    config = int4_w4a16_moe_quant_config(*scales, block_shape=[0, GROUP])
    ids = layer.chosen.to(torch.int32)

    def run() -> torch.Tensor:
        return fused_experts(  # type: ignore[no-any-return]
            layer.x, *words, layer.share, ids, activation=MoEActivation.GELU_TANH, quant_config=config
        )

    return run


def humming(x: torch.Tensor, n: int) -> Callable[[], torch.Tensor]:
    """A linear of humming-kernels: int4 in the groups it takes by default. Its MoE has no documented interface."""
    try:
        from humming.layer import HummingLayer  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise Unavailable(f"humming-kernels: {error}") from error
    k = x.shape[1]
    layer = HummingLayer(shape_n=n, shape_k=k, weight_config={"dtype": "int4"}, torch_dtype=x.dtype).to(x.device)
    layer.load_from_unquantized(torch.randn(n, k, dtype=x.dtype, device=x.device) * k**-0.5)
    layer.transform()
    return lambda: layer(x)


RIVALS = {"bf16 grouped_mm": grouped_mm, "vLLM Marlin": vllm_marlin, "vLLM Triton": vllm_triton}
