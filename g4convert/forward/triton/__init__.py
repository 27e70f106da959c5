"""Matrix products on packed int4 words, for NVIDIA GPUs, in Triton.

matmul      the kernel: a product for every expert, of the rows that were sent to it
routing     which rows go to which expert, and the sum of what experts say about a token
tiles       how a product is cut into programs: the table that ships, and a user's own
fused       what a model calls: `linear` and `moe`
candidates  the products a model has, and the tiles that can be good for one
timing      random weights, the time of a run on a GPU, runs from many threads
bench       compiles, checks and times a product with any tile
autotune    searches the best tiles and writes a table
aot         compiles for GPUs that are not here, and counts instructions

`docs/kernels.md` has the layouts, the arithmetic and what was measured. `matmul`, `routing` and what imports them
need Triton; `tiles` and `candidates` do not.
"""
