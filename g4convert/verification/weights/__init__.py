"""Level `weights`: decodes every packed weight and compares it with its source.

hashes    Compares every shard with the hash that its conversion recorded
level     Runs the comparison with bounded memory
pairs     Pairs each source weight with what the output has of it
tiles     Measures packed weights tile by tile
compiled  Has the compiled inner loop
rows      Holds a weight's numbers beside plain rounding of it, and the band of each method
judge     Says what is wrong with these numbers, what is unusual, and what is worth a note
findings  Makes one finding of many that are alike
causes    Tries known accidents on a few rows of a wrong weight
oracle    Compares the decoder with compressed-tensors on some rows
recorded  Compares the decoder with recorded answers of compressed-tensors
"""
