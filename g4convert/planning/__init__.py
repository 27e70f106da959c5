"""Decides everything about an output from names, shapes and a recipe, before a weight is read.

recipe    Loads the decisions of a conversion from YAML, options and defaults
rules     Holds what a recipe decides by role, layer and name
packings  Says how each weight is packed
steps     Makes the total plan: copy, quantize or drop for each source tensor
remarks   Warns of what a user should know about a source
layout    Gives each output tensor its file and byte offset
layers    Says which Linears are calibrated layer by layer
units     Cuts a plan into units of work that may run in any order
between   Says how much flows between layers that are run one by one
sizes     Adds up bytes by role, and how long writing them takes
costs     Says what each method takes on this machine, and what it gained on a real model
training  Says how much memory and arithmetic the training of scales takes
weights   Describes the output as engines will meet it, with its `ignore` list
config    Makes the output's config.json and its `quantization_config`
gate      Judges a plan for every engine, and holds it against those that a recipe names
report    Collects what `g4convert plan` prints
"""
