"""Reads checkpoints from disk, and trusts nothing before it is checked.

files         Opens regular files and parses JSON objects
header        Parses the header of one safetensors file
reader        Reads byte ranges of weight files from any thread
naming        Adds the file's name to failures of the device
hashes        Hashes whole weight files
shards        Finds the weight files, and compares index and shards
directory     Opens a checkpoint directory: config, tensors, byte ranges
beside        Decides which files beside the weights are carried over
needed        Tells which files engines need beside the weights
record        Reads an output's g4convert.json
output_names  Names the other files of an output that are not side files
patterns      Matches names of files against `--carry` and `--leave`
not_a_model   Diagnoses a directory without weights, and finds two copies of one model
gguf          Reads a GGUF file of float32 tensors
tokens        Counts added tokens that the embedding has no row for
leftovers     Tells files of training and adapters from those of the model
uses          Opens a checkpoint for `generate` or `reference` and takes its inventory, or refuses it
source        Finds the directory of a path or a hub name
contents      Names every tensor of a checkpoint by its place in the architecture
stored        Recognises how each module is stored: packed, plain, by which scheme
sections      Finds the quantization section of config.json, where engines look
declared      Reads the quantization section of config.json, in any format
entries       Matches `ignore` and `targets` against names
arguments     Fills in and checks the `weights` of a compressed-tensors config group
"""
