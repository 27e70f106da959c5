"""Decides everything about an output from names, shapes and a recipe, before a weight is read.

recipe               Loads the decisions of a conversion from YAML, options and defaults
steps                Makes the total plan: copy, quantize or drop for each source tensor
layout               Gives each output tensor its file and byte offset
layers               Says which Linears are calibrated layer by layer
units                Cuts a plan into units of work that may run in any order
sizes                Adds up bytes by role, and estimates the time
quantization_config  Derives and proves the `quantization_config` of config.json
gate                 Holds a plan against the engines that a recipe names
report               Collects what `g4convert plan` prints
"""
