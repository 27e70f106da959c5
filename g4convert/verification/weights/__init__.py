"""Level `weights`: decodes every packed weight and compares it with its source.

hashes    Compares every shard with the hash that its conversion recorded
level     Runs the comparison with bounded memory
pairs     Pairs each source weight with what the output has of it
tiles     Measures packed weights tile by tile
compiled  Has the compiled inner loop
judge     Turns measured errors into findings
causes    Tries known accidents on a few rows of a wrong weight
oracle    Compares the decoder with compressed-tensors on some rows
"""
