"""Says how much memory and arithmetic the training of scales takes.

decoder    packed words, which stay mapped, and all else in float32: tables, norms, routers
scales     of each its start, its logarithm, two moments, and slopes
samples    what the layers keep of each sample that runs at a time for the way back
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from g4convert.gemma4.parts import Layer, TextModel
from g4convert.planning.layers import layer_steps
from g4convert.planning.steps import Plan
from g4convert.quantities import plural

__all__ = ["BATCH", "EPOCHS", "TrainingMemory"]

EPOCHS: Final = 3
"""Times that the training of scales sees each sample."""
BATCH: Final = 4
"""Samples of a step; as many run at a time where there are cores."""

_FLOAT: Final = 4
_OF_A_SCALE: Final = 5
"""Floats of a scale, besides the slopes of each sample that runs."""
_OF_HIDDEN, _OF_HEADS, _OF_MLP = 14, 6, 5
"""Floats that a layer keeps for each token: by its hidden size, the width of its heads, and that of its MLP."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes that the training of scales takes.

    Args:
        decoder: of the quantized decoder.
        scales: of what is trained.
        samples: of the samples that run at a time.
        running: their number.
    """

    decoder: int
    scales: int
    samples: int
    running: int

    @classmethod
    def of(cls, plan: Plan, length: int, running: int) -> "TrainingMemory":
        """The need of a plan, with so many samples of a length at a time."""
        text, inside = plan.architecture.text, plan.architecture.text_prefix
        packed = [step for step in plan.quantized if step.weight.module.startswith(inside)]
        plain = (copy.target for copy in plan.copied if copy.target.name.startswith((inside, "lm_head")))
        trained = {number for steps in layer_steps(plan).values() for number in steps.values()}
        scales = sum(plan.quantized[number].scale.numel for number in trained)
        return cls(
            sum(step.packed.nbytes + step.scale.nbytes for step in packed) + _FLOAT * sum(one.numel for one in plain),
            _FLOAT * scales * (_OF_A_SCALE + running),
            _FLOAT * running * length * sum(_kept(text, layer) for layer in text.layers),
            running,
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.decoder + self.scales + self.samples

    @property
    def parts(self) -> Mapping[str, int]:
        """Bytes by what they are for."""
        return {"decoder": self.decoder, "scales": self.scales, plural(self.running, "sample"): self.samples}


def _kept(text: TextModel, layer: Layer) -> int:
    """Floats that a layer keeps of a token."""
    heads = layer.head_dim * (text.heads + 2 * (0 if layer.kv_shared else layer.kv_heads))
    mlp = layer.intermediate_size
    hidden = text.hidden_size
    kept = _OF_HIDDEN * hidden + _OF_HEADS * heads + _OF_MLP * mlp
    if text.experts is not None:
        kept += text.experts.top_k * (2 * hidden + _OF_MLP * text.experts.intermediate_size)
    return kept
