"""The role of a stored tensor, and its expected shape and dtype."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """Role of a tensor; recipes and reports use these names."""

    ATTENTION = "attention"
    """q, k, v and o projections of the decoder."""
    MLP = "mlp"
    """gate, up and down of the decoder's dense MLP."""
    EXPERTS = "experts"
    """gate, up and down of one expert."""
    ROUTER = "router"
    """Weights that choose the experts, and the experts' scales."""
    EMBEDDING = "embedding"
    """The token embedding."""
    PLE_EMBEDDING = "ple_embedding"
    """The per-layer embedding table."""
    PLE_PROJECTION = "ple_projection"
    """The projections around the per-layer embedding."""
    LM_HEAD = "lm_head"
    """The output head, where it is not tied."""
    NORM = "norm"
    """Norm weights and biases of the decoder."""
    SCALAR = "scalar"
    """The scale of a decoder layer's output."""
    VISION_TOWER = "vision_tower"
    """The vision transformer, its norms included."""
    AUDIO_TOWER = "audio_tower"
    """The conformer, its norms included."""
    EMBEDDER = "embedder"
    """Projection from images and sound to the decoder, norms included."""
    KV_SHARED = "kv_shared"
    """k_proj and v_proj of layers that use an earlier layer's keys and values; no computation uses them."""
    DRAFTER = "drafter"
    """Weights of an MTP assistant around its decoder."""
    CLIP = "clip"
    """Calibrated limits of a tower's inputs and outputs."""


TABLES: Final = frozenset({Role.EMBEDDING, Role.PLE_EMBEDDING})
"""Roles of weights that are looked up by row, not multiplied."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected shape and kind of a stored tensor.

    Args:
        shape: shape; `()` is a scalar.
        role: role of the tensor.
        linear: True for the weight [out_features, in_features] of a Linear or of an expert's projection.
        optional: True if a checkpoint may leave it out.
        integer: True if it holds int32 or int64 indices, not weights.
        convolution: True for the weight [out, in, *kernel] of a convolution; MLX stores [out, *kernel, in].
    """

    shape: tuple[int, ...]
    role: Role
    linear: bool = False
    optional: bool = False
    integer: bool = False
    convolution: bool = False

    @property
    def channels_last(self) -> tuple[int, ...]:
        """The shape of a convolution's weight as MLX stores it."""
        return (self.shape[0], *self.shape[2:], self.shape[1])
