"""`g4convert inspect`: what a checkpoint is, held against what its config says of it.

stored_scheme     how each module is stored, from names, dtypes and shapes
declared_scheme   what config.json declares, in the spellings of the formats seen
describe          both against each other, module by module
description       the result: values, JSON, tables
"""

from g4convert.inspection.describe import describe
from g4convert.inspection.description import Description

__all__ = ["Description", "describe"]
