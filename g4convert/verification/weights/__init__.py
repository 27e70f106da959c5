"""Level `weights`: decodes every packed weight and compares it with its source.

hashes          Compares every shard with the hash that its conversion recorded
level           Runs the comparison with bounded memory
pairs           Pairs each source weight with the output's tensors of the same name
measured        Measures packed weights tile by tile
group_sums      Compiled inner loop: adds up sums over the groups of a weight
lanes           Layout of groups in the compiled loop
stored_codes    Decodes the stored codes of a run of weights and adds up their sums
plain_rounding  Rounds groups plainly, to compare the stored codes with
rows            Compares a weight's error with that of plain rounding, and has the limits of each method
judge           Judges these numbers: failures and warnings
scales          Judges scales, one by one, by groups and as a whole
notes           Compares sound weights with one another
spare           Compares a stored tied head, and biases of Linears, with what engines compute in their place
findings        Merges many findings that are alike
causes          Tries known accidents on a few rows of a wrong weight
oracle          Compares the decoder with compressed-tensors on some rows
recorded        Compares the decoder with recorded results of compressed-tensors
"""
