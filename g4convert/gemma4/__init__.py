"""What every stored name of a Gemma 4 checkpoint means: families, roles, shapes, dialects.

The only place that knows names. Pure: nothing here opens a file or imports torch.

    config.json -> Architecture -> expected_weights        the closed set of names, shapes, roles
    tensor headers + Architecture -> resolve -> Inventory  what each source tensor is, and where its bytes lie
"""

from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.diagnosis import quantized_format
from g4convert.gemma4.inventory import Extra, Inventory, Segment, Weight, resolve
from g4convert.gemma4.matching import DialectUse
from g4convert.gemma4.parts import (
    AudioEmbedder,
    AudioTower,
    Drafter,
    Experts,
    Layer,
    PerLayerEmbedding,
    TextModel,
    VisionEmbedder,
    VisionTower,
)
from g4convert.gemma4.roles import Expected, Role
from g4convert.gemma4.schema import (
    Droppable,
    ExtraKind,
    FusedExperts,
    droppable,
    expected_weights,
    fused_experts,
)

__all__ = [
    "Architecture",
    "AudioEmbedder",
    "AudioTower",
    "DialectUse",
    "Drafter",
    "Droppable",
    "Expected",
    "Experts",
    "Extra",
    "ExtraKind",
    "FusedExperts",
    "Inventory",
    "Layer",
    "PerLayerEmbedding",
    "Role",
    "Segment",
    "TextModel",
    "VisionEmbedder",
    "VisionTower",
    "Weight",
    "droppable",
    "expected_weights",
    "fused_experts",
    "quantized_format",
    "resolve",
]
