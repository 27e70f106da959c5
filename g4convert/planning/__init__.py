"""Takes every decision about an output from names, shapes and a recipe, before a weight is read.

recipe          Defines the decisions of a conversion and their defaults
recipe_files    Loads a recipe from YAML, with what it extends and the options laid over it
recipe_options  Finds the options that give a recipe, for commands that are suggested
recipe_faults   Describes invalid values of a recipe
rules           Holds what a recipe decides by role, layer and name
packings        Decides bits and group size of each weight
plan            Defines the plan: a step for each source tensor, which copies, quantizes or drops it
steps           Makes the plan: decides the step of every source tensor
remarks         Warns of what a user should know about a source
layout          Gives each output tensor its file and byte offset
layers          Lists the Linears that are calibrated layer by layer
units           Cuts a plan into units of work that may run in any order
between         Computes the bytes of hidden states between layers that are run one by one
sizes           Adds up bytes by role, and estimates the time to write them
costs           Estimates time, memory and disk of each method, and gives its loss on a real model
training        Estimates the memory and arithmetic of training scales
weights         Describes the output as engines will load it, with its `ignore` list
config          Makes the output's config.json and its `quantization_config`
gate            Judges a plan for every engine, and refuses it if an engine of the recipe cannot load it
report          Collects what `g4convert plan` prints
"""
