"""Matrix products on packed int4 words, for NVIDIA GPUs, in Triton.

matmul      the kernel: a product for every expert, of the rows that were sent to it
routing     which rows go to which expert, and the sum of what experts say about a token
tiles       how a product is cut into programs: the table that ships, and a user's own
fused       what a model calls: `linear` and `moe`
autotune    measures tiles on a GPU and writes a table
aot         compiles for GPUs that are not here, and counts instructions

`docs/kernels.md` has the layouts, the arithmetic and what was measured. `matmul`, `routing` and what imports them
need Triton; `tiles` does not.
"""
