"""Resolves every stored name of a Gemma 4 checkpoint; opens no file, imports no torch.

family          Names the families
architecture    Reads a config into the dimensions of every part
config_reader   Reads and checks config keys
decoder_config  Reads the keys of the decoder
defaults        Says which values of a key mean what leaving it out means
media_config    Reads the keys of towers and embedders
left_out        Finds keys that a config leaves out and an engine reads
other_keys      Checks the types of keys that decide no tensor
parts           Defines the dimensions of each part
roles           Defines the roles of weights
schema          Lists every weight that a config implies
towers          Lists the weights of towers and embedders
dialects        Resolves the spellings that trainers, merges and engines leave
matching        Matches stored names with the schema
inventory       Resolves every tensor of a source, or raises an error that lists all faults
faults          Finds and describes tensors that do not fit
causes          Finds the cause of faults, where they prove it
name_causes     Finds the cause of unknown names beside missing ones
shape_causes    Finds the cause of wrong shapes
wrong_keys      Finds config keys that do not fit the tensors, and values that do
readings        Reads values of config keys from the shapes of stored tensors
diagnosis       Recognises quantized sources and adapters, and finds the nearest known name

config.json -> Architecture -> schema: the closed set of names, shapes and roles. Headers + Architecture -> Inventory.
"""

from g4convert.gemma4.architecture import UNIFIED_TEXT, Architecture, is_drafter
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
    "UNIFIED_TEXT",
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
    "is_drafter",
    "quantized_format",
    "resolve",
]
