"""Knows what every stored name of a Gemma 4 checkpoint means; opens no file, imports no torch.

family          Names the families
architecture    Reads a config into dimensions of every part
config_reader   Reads config keys with their checks
decoder_config  Reads the keys of the decoder
media_config    Reads the keys of towers and embedders
parts           Has the dimensions of each part
roles           Names what weights are for
schema          Lists every weight a config implies
towers          Lists the weights of towers
dialects        Has the other names that trainers, merges and engines leave
matching        Matches stored names with the schema
inventory       Resolves every tensor of a source, or lists all that do not fit
faults          Describes what does not fit
causes          Says why, where the faults prove it
fitting         Finds the keys of the config that do not fit, and the values that would
diagnosis       Recognises sources that are something else

config.json -> Architecture -> schema: the closed set of names, shapes and roles. Headers + Architecture -> Inventory.
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
from g4convert.gemma4.roles import TABLES, Expected, Role
from g4convert.gemma4.schema import (
    Droppable,
    ExtraKind,
    FusedExperts,
    droppable,
    expected_weights,
    fused_experts,
)

__all__ = [
    "TABLES",
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
