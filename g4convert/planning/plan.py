"""The plan: the step taken for every source tensor, and the source of every output tensor.

It is total: each source tensor belongs to exactly one step, whole or split between several.

    Copy      bytes of one or more source ranges, unchanged, under the canonical name; for a convolution stored with
              channels last, the axes are reordered
    Quantize  a Linear [n, k] becomes weight_packed int32 [n, k*bits/32], weight_scale bf16 [n, groups] and
              weight_shape int64 [2]
    Drop      a source tensor that is not written, with the reason, and the condition that makes dropping it right
"""

from dataclasses import dataclass
from functools import cached_property

from g4convert.checkpoint.beside import Beside
from g4convert.engines.limits import Packing
from g4convert.gemma4 import Architecture, Inventory, Role, Segment, Weight
from g4convert.planning.recipe import Recipe
from g4convert.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class Copy:
    """A step that writes a tensor as the concatenation of byte ranges of source tensors.

    Args:
        target: tensor that is written.
        role: role of the tensor.
        segments: source byte ranges, in order.
        reason: reason why the tensor is not packed, for people.
        channels_last: the source has the axes in the order [out, *kernel, in], so values are reordered.
    """

    target: TensorInfo
    role: Role
    segments: tuple[Segment, ...]
    reason: str
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Quantize:
    """A step that packs a Linear [n, k], one byte range of a source tensor, into codes and scales."""

    weight: Weight
    packing: Packing
    packed: TensorInfo
    scale: TensorInfo
    shape: TensorInfo

    @property
    def outputs(self) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
        """The three stored tensors: codes, scales and shape."""
        return self.packed, self.scale, self.shape


@dataclass(frozen=True, slots=True)
class Drop:
    """A step that leaves a source tensor out of the output."""

    source: TensorInfo
    reason: str
    must_equal: str | None = None
    """Name of the source tensor that this tensor must equal, or `ones`; checked before the first byte is written."""


Step = Copy | Quantize | Drop


def outputs_of(step: Copy | Quantize) -> tuple[TensorInfo, ...]:
    """Return the tensors that a step writes."""
    return (step.target,) if isinstance(step, Copy) else step.outputs


@dataclass(frozen=True)  # without slots: its kinds of steps are kept
class Plan:
    """All steps of a conversion, and the facts they follow from.

    Args:
        recipe: recipe of the output.
        architecture: architecture of the output.
        inventory: weights of the source and its spelling of their names; a tied head is a weight of its own if the
            output stores it.
        steps: steps in the canonical order of the model.
        warnings: remarks for the user.
        beside: files of the source beside its weights.
    """

    recipe: Recipe
    architecture: Architecture
    inventory: Inventory
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    beside: Beside

    @property
    def is_decoder_of(self) -> bool:
        """True if the output is only the decoder of a multimodal source."""
        return self.inventory.architecture.is_composite and not self.architecture.is_composite

    @cached_property
    def quantized(self) -> tuple[Quantize, ...]:
        """The Linears that are packed."""
        return tuple(step for step in self.steps if isinstance(step, Quantize))

    @cached_property
    def copied(self) -> tuple[Copy, ...]:
        """The tensors that keep their bytes."""
        return tuple(step for step in self.steps if isinstance(step, Copy))

    @cached_property
    def dropped(self) -> tuple[Drop, ...]:
        """The source tensors that are not written."""
        return tuple(step for step in self.steps if isinstance(step, Drop))
