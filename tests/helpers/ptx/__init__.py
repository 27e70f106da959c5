"""Runs the PTX that Triton makes of a kernel, on numpy arrays, and checks how it uses memory.

    launch       the launcher that `fused` sees in place of Triton's: compiles, binds arguments, runs every block
    machine      one block: all its threads in step, one instruction after the other
    decode       an instruction's text to a function of a block; `operands` does it for registers and numbers
    arithmetic   what works on each thread by itself: a table of opcodes
    collective   what a warp or four do together, with fragments and layouts from `matrix`
    memory       global memory that refuses what is wrong, and traffic; `shared` is that of a block
    parse        the text of a kernel

Exact where PTX is. Tensor cores add in an order and a precision of their own, which are not published: here the sum of
one instruction is float64, rounded once to float32. `ex2.approx` and `div.full` are rounded to nearest. What is counted
as traffic is what warps ask for: there are no caches here, and no time.
"""
