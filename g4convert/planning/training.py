"""Estimates the memory and arithmetic of training scales.

decoder    packed words, which stay mapped, and other tensors in float32: tables, norms, routers
scales     for each scale its initial value, its logarithm, two moments, and gradients
samples    activations that the layers keep for the backward pass, for each sample that runs at a time
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from g4convert.gemma4.parts import Layer, TextModel
from g4convert.planning.layers import layer_steps
from g4convert.planning.plan import Plan
from g4convert.quantities import plural

EPOCHS: Final = 3
"""Times that training sees each sample."""
BATCH: Final = 4
"""Samples of a training step; they run in parallel if there are enough cores."""

_FLOAT: Final = 4
_FLOATS_OF_A_SCALE: Final = 5
"""Floats per scale, besides the gradients of each sample that runs."""
_OF_HIDDEN, _OF_HEADS, _OF_MLP = 14, 6, 5
"""Floats that a layer keeps per token, as multiples of hidden size, width of all heads, and MLP width."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Memory that training scales takes, in bytes.

    Args:
        decoder: bytes of the quantized decoder.
        scales: bytes of the trained scales.
        samples: bytes of the samples that run at a time.
        running: number of samples that run at a time.
    """

    decoder: int
    scales: int
    samples: int
    running: int

    @classmethod
    def of(cls, plan: Plan, length: int, running: int) -> "TrainingMemory":
        """Return the memory of a plan, with `running` samples of `length` tokens at a time."""
        text, path = plan.architecture.text, plan.inventory.architecture.decoder_path
        packed = [step for step in plan.quantized if path(step.weight.module) is not None]
        plain = (copy.target for copy in plan.copied if plan.architecture.text_name(copy.target.name) is not None)
        trained = {number for steps in layer_steps(plan).values() for number in steps.values()}
        scales = sum(plan.quantized[number].scale.numel for number in trained)
        return cls(
            sum(step.packed.nbytes + step.scale.nbytes for step in packed)
            + _FLOAT * sum(tensor.numel for tensor in plain),
            _FLOAT * scales * (_FLOATS_OF_A_SCALE + running),
            _FLOAT * running * length * sum(_count_kept_floats(text, layer) for layer in text.layers),
            running,
        )

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.decoder + self.scales + self.samples

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by purpose."""
        return {"decoder": self.decoder, "scales": self.scales, plural(self.running, "sample"): self.samples}


def _count_kept_floats(text: TextModel, layer: Layer) -> int:
    """Return the number of floats that a layer keeps per token."""
    heads = layer.head_dim * (text.heads + 2 * (0 if layer.kv_shared else layer.kv_heads))
    mlp = layer.intermediate_size
    hidden = text.hidden_size
    count = _OF_HIDDEN * hidden + _OF_HEADS * heads + _OF_MLP * mlp
    if text.experts is not None:
        count += text.experts.top_k * (2 * hidden + _OF_MLP * text.experts.intermediate_size)
    return count
