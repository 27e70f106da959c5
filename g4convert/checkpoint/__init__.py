"""Reads what is on disk, and believes none of it before it is checked.

files      Opens regular files and parses JSON objects
header     Parses the header of one safetensors file
reader     Reads byte ranges of weight files from any thread
naming     Says of which file a failure of the device is
hashes     Hashes whole weight files
shards     Finds the weight files, and holds index and shards against each other
directory  Opens a checkpoint directory: config, tensors, byte ranges
beside     Says which files beside the weights are carried over
record     Reads what an output says of itself in g4convert.json
patterns   Matches names of files against `--carry` and `--leave`
layouts    Says what a directory without weights is, and finds two copies of one model
gguf       Reads a GGUF file of float32 tensors
leftovers  Tells files of training and adapters from those of the model
source     Finds the directory that a path or a hub name means
contents   Names every tensor of a checkpoint by its place in the architecture
stored     Recognises how each module is stored: packed, plain, by which scheme
declared   Reads what config.json says about quantization, in any format
entries    Matches `ignore` and `targets` against names
arguments  Fills in and checks the `weights` of a compressed-tensors config group
"""
