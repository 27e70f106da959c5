"""Streams weights once, from a source to a finished output directory.

run               Opens, plans, checks, streams and finishes
drops             Reads tensors that may only be left out with a certain value
method            Chooses the method for `method: auto` from a sample of groups
workers           Makes the tile arithmetic of each worker: cores or GPUs
stream            Runs units through workers: read, quantize or copy, write, journal
writer            Writes bytes at their final offsets
journal           Records finished units, so that a killed run continues
fingerprint       Says what an output depends on, for runs and ranks to compare
resume            Reads again what a stopped run says it has finished
lock              Lets one process at a time write an output
staging           Keeps OUT.partial until it may take the name of OUT
ranks             Shares one output between processes under torchrun
identity          Says which model a file is of
statistics        Holds what the Linears of a model are given
calibration_file  Reads and writes calibration files
llama_imatrix     Reads an importance matrix of llama.cpp
weighting         Says which weights are rounded with statistics, and holds these against the model
finished          Sees whether an output is there already
result            Sums up a finished conversion: sizes, errors, method
provenance        Says in g4convert.json where an output comes from
card              Writes the model card
"""
