"""Multiplies packed int4 words on NVIDIA GPUs, in Triton.

matmul      The kernel: a product for every expert, of the rows sent to it
routing     Sorts rows by expert, and sums what experts say about a token
packed      Describes packed weights for the kernels
tiles       Chooses how a product is cut into programs: the table that ships, and a user's own
fused       `linear` and `moe`: what a model calls
candidates  Lists the products of a model, and tiles that can be good for one
timing      Makes random weights and times runs
bench       Compiles, checks and times a product with any tile
autotune    Searches the best tiles and writes a table

`docs/concepts/kernels.md` has layouts, arithmetic and measurements. `matmul`, `routing` and what
imports them need Triton.
"""
