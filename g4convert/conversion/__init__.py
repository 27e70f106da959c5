"""Streams weights once, from a source to a finished output directory.

job               Takes every decision of a conversion before it runs
run               Starts or continues an output, streams every unit and finishes it
apart             Checks that a run writes and deletes nothing that it reads
side_files        Names and writes the files beside the shards, and makes g4convert.json
drops             Checks the values of tensors that the output leaves out
method            Chooses the method for `method: auto` from a sample of groups
workers           Makes the tile arithmetic of each worker: cores or GPUs
stream            Runs units through workers: read, quantize or copy, write, journal
writer            Writes bytes at their final offsets
journal           Records finished units, so that a killed run continues
fingerprint       Collects the facts that an output depends on, for runs and ranks to compare
resume            Checks the finished units of a stopped run against their checksums
lock              Lets one run at a time write an output
held              Says which conversion an output directory holds
staging           Makes OUT.partial, reopens it, and renames it to OUT
staging_checks    Checks that OUT and OUT.partial may be written and replaced
ranks             Shares one output between processes under torchrun
identity          Identifies the model that a file was made for
pictures          Holds the pictures in rows of token ids, as patches
statistics        Holds the statistics of the inputs of a model's Linears
calibration_file  Reads and writes calibration files
llama_imatrix     Reads an importance matrix of llama.cpp
calibration       Reads the calibration file of a conversion, and checks that it is of the model
weighting         Assigns statistics to packed weights, and checks that they fit the model
finished          Checks whether an output already exists and is intact
result            Sums up a finished conversion: sizes, errors, method
card              Writes the model card
"""
