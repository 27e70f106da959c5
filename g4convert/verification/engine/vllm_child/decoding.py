"""Replacement of vLLM's 4-bit kernels on CPUs, which take half precision only; experts also need the CPU feature AMX.

The words that vLLM's own loader placed are decoded once, and vLLM's unquantized products run.
"""

from typing import Any

import torch


def decode_in_place_of_kernels() -> None:
    """Make vLLM use decoded weights: in torch for Linears and rows of tables, in its unquantized kernel for experts."""
    from vllm.model_executor.layers.fused_moe import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_embedding as tables
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_wna16 as experts,
    )
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16 as linears

    class DecodedExperts(experts.CompressedTensorsWNA16MoEMethod):  # type: ignore[misc] # Any
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.is_marlin = False
            self.plain = UnquantizedFusedMoEMethod(self.moe)
            self.experts_cls = self.plain.experts_cls

        def process_weights_after_loading(self, layer: Any) -> None:
            for part in ("w13", "w2"):
                names = f"{part}_weight_packed", f"{part}_weight_scale", f"{part}_weight_shape"
                words, scale, _ = (getattr(layer, name).data for name in names)
                for name in names:
                    delattr(layer, name)
                weight = torch.nn.Parameter(decoded(words, scale, self.num_bits), requires_grad=False)
                layer.register_parameter(f"{part}_weight", weight)
            self.plain.process_weights_after_loading(layer)

        def get_fused_moe_quant_config(self, layer: Any) -> Any:
            return self.plain.get_fused_moe_quant_config(layer)

        def apply(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            product: torch.Tensor = self.plain.apply(*args, **kwargs)
            return product

    linears.choose_mp_linear_kernel = lambda *_, **__: DecodedLinear
    tables._dequant_gather_triton = decoded_rows  # noqa: SLF001 -- Triton has no CPU
    marlin = WNA16MoEBackend.MARLIN, None  # the others refuse scales by row
    experts.select_wna16_moe_backend = lambda *_, **__: marlin
    experts.check_moe_marlin_supports_config = lambda *_, **__: True
    experts.get_marlin_input_dtype = lambda *_: None
    experts.CompressedTensorsWNA16MoEMethod = DecodedExperts


def decoded(words: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Decode int32 words [..., n, k / p] and scales [..., n, k / g] to weights [..., n, k] of the scales' dtype.

    A word has p codes of `bits` bits, the first code in the lowest bits; a code is stored as code + 2^(bits - 1).
    """
    codes = (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int32)) & (2**bits - 1)
    values: torch.Tensor = (codes - 2 ** (bits - 1)).to(scale.dtype).reshape(*scale.shape, -1)
    return (values * scale[..., None]).flatten(-2)


def decoded_rows(ids: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, _: int, bits: int) -> torch.Tensor:
    """Decode the rows `ids` [t] of a packed table to [t, k], in place of vLLM's Triton kernel."""
    return decoded(words[ids.long()], scale[ids.long()], bits)


class DecodedLinear:
    """Replacement of a 4-bit Linear kernel: decodes the words once and multiplies by the decoded weight.

    Args:
        config: vLLM's configuration of the kernel.
    """

    def __init__(self, config: Any, **_: Any) -> None:
        self._bits = config.weight_type.size_bits

    def process_weights_after_loading(self, layer: Any) -> None:
        """Decode the layer's words, and replace them by the decoded weight."""
        weight = decoded(layer.weight_packed.data, layer.weight_scale.data, self._bits)
        del layer.weight_packed, layer.weight_scale
        layer.register_buffer("decoded", weight, persistent=False)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply `x` by the decoded weight."""
        return torch.nn.functional.linear(x, layer.decoded, bias)
