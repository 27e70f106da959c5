"""Gives `v_proj` of the model of `real_model.py` its size back, for tools that store scales as float16.

There `v_proj` is times 2^-17, so that the norm of values only multiplies. Its scales, about 1e-7, have one or two
binary digits in float16. Here it is times 2^17, and what the norm is given times 2^-17: no state of the model changes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["lowered", "raise_values"]

_UP = 2.0**17


class _Lowered(torch.nn.Module):
    """The norm of values, given what `v_proj` gave before it was raised."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, values: torch.Tensor) -> Any:  # noqa: ANN401 - torch's modules are not typed
        """Return the normed values."""
        return self.norm(values / _UP)


def raise_values(layers: Iterable[Any]) -> None:
    """Raise `v_proj` of each layer, and lower what its norm is given."""
    for layer in layers:
        layer.self_attn.v_proj.weight.data.mul_(_UP)
        layer.self_attn.v_norm = _Lowered(layer.self_attn.v_norm)


def lowered(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a `pack-quantized` checkpoint with the scales of `v_proj` as the model's own need them."""
    return {
        name: value.float() / _UP if name.endswith(".v_proj.weight_scale") else value for name, value in tensors.items()
    }
