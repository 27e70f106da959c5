"""Sorting of rows by expert, and the sum of the experts' results of a token: two small kernels, no host.

A pair is one of the top_k choices of one token: pair p is choice p % top_k of token p // top_k. `align` sorts pairs by
expert and pads each expert's to whole blocks, so that a block of the product has one weight:

    experts           0         1 (none)   2
    pairs      3 7 12 .                    0 1 5 8   9 . . .     "." is padding, the number of pairs
    block      0                           1         2

How many blocks there are is only known on the GPU; the host takes the most there can be (`most_blocks`), and the rest
have expert -1. One program for each expert counts all pairs, so programs need no word from each other, and pairs stay
in their order: nothing depends on which program is first.
"""

import triton
from triton import language as tl

from g4convert.forward.triton.matmul import nearest


def most_blocks(pairs: int, experts: int, block_m: int) -> int:
    """Return the most blocks that any routing of so many pairs takes."""
    return min(pairs, (pairs + experts * (block_m - 1)) // block_m)


@triton.jit
def align(
    chosen: tl.tensor,
    pairs: tl.tensor,
    experts: tl.tensor,
    count: tl.tensor,
    capacity: tl.tensor,
    number: tl.constexpr,
    bins: tl.constexpr,
    block_m: tl.constexpr,
    chunk: tl.constexpr,
) -> None:
    """Write the blocks of experts: program e those of expert e; the last one also what is left.

    Args:
        chosen: integers [count], the expert of each pair; one that does not exist is left out.
        pairs: int32 [capacity, block_m], out.
        experts: int32 [capacity], out.
        count: pairs.
        capacity: blocks, `most_blocks`.
        number: number of experts.
        bins: a power of two, more than `number`.
        block_m: pairs of a block.
        chunk: pairs looked at in one step, a power of two.
    """
    expert = tl.program_id(0)
    step = tl.arange(0, chunk)
    bin_ = tl.arange(0, bins)
    counts = tl.zeros([bins], tl.int32)
    for begin in range(0, count, chunk):
        at = begin + step
        named = tl.load(chosen + at, mask=at < count, other=number)
        named = tl.where((named >= 0) & (named < number), named, number).to(tl.int32)
        counts += tl.histogram(named, bins)
    blocks = tl.where(bin_ < number, (counts + block_m - 1) // block_m, 0)
    first = tl.sum(tl.where(bin_ < expert, blocks, 0), 0)
    own = tl.sum(tl.where(bin_ == expert, blocks, 0), 0)
    seen = 0
    for begin in range(0, count, chunk):
        at = begin + step
        here = (at < count) & (tl.load(chosen + at, mask=at < count, other=-1) == expert)
        place = seen + tl.cumsum(here.to(tl.int32), 0) - 1
        tl.store(pairs + first * block_m + place, at, mask=here)
        seen += tl.sum(here.to(tl.int32), 0)
    rest = seen + tl.arange(0, block_m)
    tl.store(pairs + first * block_m + rest, tl.zeros([block_m], tl.int32) + count, mask=rest < own * block_m)
    for begin in range(0, own, chunk):
        at = begin + step
        tl.store(experts + first + at, tl.zeros([chunk], tl.int32) + expert, mask=at < own)
    if expert == number - 1:
        for begin in range(first + own, capacity, chunk):
            at = begin + step
            tl.store(experts + at, tl.full([chunk], -1, tl.int32), mask=at < capacity)


@triton.jit
def top_k_sum(
    y: tl.tensor,
    chosen: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    number: tl.tensor,
    top_k: tl.constexpr,
    block: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """Add the results of a token's experts in float32, in the order in which they were chosen.

    Args:
        y: [t * top_k, n]; rows of pairs that were sent to no expert are not read.
        chosen: integers [t * top_k], the expert of each.
        out: [t, n].
        n: features.
        number: number of experts.
        top_k: experts of a token.
        block: features of a program, a power of two.
        interpreted: whether this runs in Triton's interpreter.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for choice in tl.static_range(top_k):
        pair = token * top_k + choice
        expert = tl.load(chosen + pair)
        width = tl.where(expert < 0, 0, tl.where(expert < number, n, 0))
        total += tl.load(y + pair.to(tl.int64) * n + column, mask=column < width, other=0).to(tl.float32)
    result = nearest(total, out.dtype.element_ty, interpreted)
    tl.store(out + token.to(tl.int64) * n + column, result, mask=column < n)
