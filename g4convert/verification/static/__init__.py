"""Level `static`: compares an output with its source and its own config, from headers alone.

level             Runs the checks of this level in order
files             Checks shards, index and sizes, and that engines can read what lies beside
side_files        Compares the files beside the weights with the source's
stored_reference  Compares config and files with what a stored reference holds of the source's
config            Checks config keys and the architecture
section           Checks the quantization section
extras            Checks keys of that section that describe no packed weight
tensors           Checks that every tensor is there, once, in a form it may have
packing           Checks words, scales and shapes of packed weights, and the config groups that engines build them by
engines           Compares what each engine would build with what is stored
"""
