"""Describes and repairs checkpoints of any origin.

describe        Compares what a checkpoint stores with what its config declares
modules         Finds name, role and shape of each stored weight
lists           Matches `ignore` and `targets` with modules by the names of every engine
description     Holds the result of `describe`
engines         Judges which engines load a checkpoint: `g4convert check`
drafter         Compares an MTP drafter with its target
weight_files    Compares the names of weight files with those that each engine reads
needed_files    Finds files that are missing beside the weights
file_faults     Holds faults of files in some engines
config_changes  Describes how the quantization sections of two configs differ
fix             Rewrites a wrong `quantization_config`: `check --fix`
"""

from g4convert.inspection.describe import describe
from g4convert.inspection.description import Description

__all__ = ["Description", "describe"]
