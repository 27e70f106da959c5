"""`g4convert verify`: whether a quantized checkpoint is what its source says, and runs as it is written.

static     names, shapes, config and files, without reading a weight; no torch
gates      measured values against the thresholds of a profile

Each check yields findings (`g4convert.report`), also where all is well.
"""
