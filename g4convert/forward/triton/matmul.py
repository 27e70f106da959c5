"""The kernel: x W^T on packed int4 words, for one weight or for many experts at once.

    words   int16 [e, n, k/4]       compressed-tensors' `weight_packed`, int32 [e, n, k/8], seen as halfwords:
                                    halfword j of a row holds codes 4j..4j+3 plus 8, low bits first
    scale   [e, groups, n]          its `weight_scale` with the last two axes swapped in memory
    x       [rows, k]               activations by slices: column i*k/4 + j is feature 4j + i
    out     [pairs, n]              or, of gate and up, [pairs, n] by slices again, as the next product reads it

Nibble i of every halfword makes slice i of the weight, and the sum over k is four sums, one for each slice. So words
are multiplied as they are stored, codes never move between lanes, and only activations are permuted, once.

    acc[rows, block_m] += (code * scale)[rows, block_h] @ x[block_m, block_h]^T        4 times a step

Weights are the left operand, in registers; tokens are the right one, padded to 8 and not to 64; what pads is not read.
Gate and up are one operand, rows of gate above rows of up, and parted after the sum. A code becomes a float by two bit
operations and one exact fma (`assembly`), and is multiplied by its scale, rounded once: the weight that
`PackedWeight.dense` has. Sums are float32. The last block of n starts early enough to be whole, and writes some values
twice, the same ones: no masks, and loads stay 16 bytes wide.

That kh is positive has to be said: or else the accumulators have a way round the loop, and NVIDIA's assembler makes
every wgmma wait for the one before it.

Triton's interpreter has no inline assembly, and takes bf16 for its bits; `nearest` and the wide branch of `_weight`
are all that it runs differently.

Letters: e experts, n out_features, k in_features, h halfwords of a row (k/4), m rows of x for one expert.
"""

import re

import triton
from triton import language as tl

_PAIR = {  # of 16-bit floats: the fma, 2^m as a float, 1, and -(2^m + 8)
    tl.bfloat16: ("fma.rn.bf16x2", "0x43004300", "0x3F803F80", "0xC308C308"),  # m = 7
    tl.float16: ("fma.rn.f16x2", "0x64006400", "0x3C003C00", "0xE408E408"),  # m = 10
}


@triton.constexpr_function
def assembly(dtype: tl.dtype, i: int, scaled: bool) -> str:  # noqa: FBT001 - inside a kernel all arguments are constants
    """Return PTX that makes a pair of weights of nibble i of two halfwords.

    The nibble is put into the mantissa of 2^m, where it counts ones, and 2^m + 8 is taken away; both are exact. It
    takes an fma, since there is no subtraction of bf16 before sm_90. Nor is there a product: an fma with -0 is one.

    Args:
        dtype: `tl.bfloat16` or `tl.float16`.
        i: 0 to 3.
        scaled: whether to multiply by a pair of scales, the second input.
    """
    fma, bias, one, minus = _PAIR[dtype]
    code = f"shr.b32 t, $1, {4 * i}; lop3.b32 t, t, 0x000F000F, {bias}, 0xEA; {fma} t, t, one, minus;"
    last = f"{fma} $0, t, $2, zero;" if scaled else "mov.b32 $0, t;"
    constants = f"mov.b32 one, {one}; mov.b32 minus, {minus}; mov.b32 zero, 0x80008000;"
    return f"{{ .reg .b32 t, one, minus, zero; {constants} {code} {last} }}"


@triton.constexpr_function
def fenced(pack: int) -> str:
    """Return PTX that passes halfwords on, and before it what was copied to shared memory on to wgmma.

    wgmma reads shared memory by another way than copies write it, and may find there what was before. Triton before
    3.7.1 leaves the fence between them out. It has to come after the copies have arrived, as the words have, and before
    the product, which needs the words: so it is put on their way, once for all of a thread.

    Args:
        pack: halfwords of a thread, an even number.
    """
    moves = (f"mov.b32 ${i}, ${pack // 2 + i};" for i in range(pack // 2))
    return f"fence.proxy.async.shared::cta; {' '.join(moves)}"


@triton.constexpr_function
def passed(pack: int) -> str:
    """Return the registers of `fenced`: as many out as in."""
    return ",".join(["=r"] * (pack // 2) + ["r"] * (pack // 2))


@triton.jit
def nearest(value: tl.tensor, dtype: tl.constexpr, interpreted: tl.constexpr) -> tl.tensor:
    """Return floats rounded to a dtype, to nearest and even. THE place for the interpreter's bf16.

    The interpreter keeps bf16 as uint16: it widens that right and cuts off when it narrows, and any arithmetic on it
    works on the bits. So it computes in float32, on values that this has rounded, and cutting off is exact.
    """
    if interpreted and dtype == tl.bfloat16:
        value = value.to(tl.float32)
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)  # NaN stays  # noqa: PLR0124
    return value.to(dtype)


@triton.jit
def _weight(
    halfwords: tl.tensor, scale: tl.tensor, i: tl.constexpr, dtype: tl.constexpr, interpreted: tl.constexpr
) -> tl.tensor:
    """Return slice i of a tile of weights, [rows, block_h]; a scale of None is left for the sums."""
    if interpreted or dtype == tl.float32:
        weight = (((halfwords >> (4 * i)) & 15) - 8).to(tl.float32)
        if scale is not None:
            weight = nearest(weight * scale.to(tl.float32), dtype, interpreted)
        weight = weight.to(tl.float32)
    else:
        text: tl.constexpr = assembly(dtype, i, scale is not None)
        registers: tl.constexpr = "=r,r" if scale is None else "=r,r,r"
        given = [halfwords] if scale is None else [halfwords, scale]
        if dtype == tl.bfloat16:
            weight = tl.inline_asm_elementwise(text, registers, given, dtype=tl.bfloat16, is_pure=True, pack=2)
        else:
            weight = tl.inline_asm_elementwise(text, registers, given, dtype=tl.float16, is_pure=True, pack=2)
    return weight


@triton.jit
def _read(at: tl.tensor, inside: tl.tensor, even: tl.constexpr) -> tl.tensor:
    """Return a tile; zeros where it is not inside."""
    return tl.load(at) if even else tl.load(at, mask=inside, other=0)


@triton.jit
def _scales(
    scale: tl.tensor,
    row: tl.tensor,
    h: tl.tensor,
    n: tl.tensor,
    groups: tl.tensor,
    group_h: tl.constexpr,
    rows: tl.constexpr,
    block_h: tl.constexpr,
    even: tl.constexpr,
    dtype: tl.constexpr,
    interpreted: tl.constexpr,
) -> tl.tensor:
    """Return the scale of each halfword of a tile, [rows, block_h] or [rows, 1]; None where a row has only one."""
    if group_h == 0:
        some = None
    elif group_h >= block_h:
        some = nearest(tl.load(scale + (h // group_h) * n + row), dtype, interpreted)[:, None]
    else:
        count: tl.constexpr = block_h // group_h
        group = h // group_h + tl.arange(0, count)
        some = _read(scale + group[:, None] * n + row[None, :], (group < groups)[:, None], even)
        some = tl.trans(nearest(some, dtype, interpreted))[:, :, None]
        some = tl.reshape(tl.broadcast_to(some, [rows, count, group_h]), [rows, block_h])
    return some


@triton.jit
def _tokens(at: tl.tensor, inside: tl.tensor, interpreted: tl.constexpr) -> tl.tensor:
    """Return a tile of activations; zeros where it is not inside. bf16 must not reach the interpreter's dot."""
    tile = tl.load(at, mask=inside, other=0)
    return tile.to(tl.float32) if interpreted else tile


@triton.jit
def _rows(
    pairs: tl.tensor, experts: tl.tensor, count: tl.tensor, block: tl.tensor, block_m: tl.constexpr, route: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the expert of a block, negative for none, and the pairs in it, [block_m]; `count` or more for none."""
    place = tl.arange(0, block_m)
    if route == "sorted":
        return tl.load(experts + block), tl.load(pairs + block * block_m + place)
    if route == "pairs":
        return tl.load(pairs + block).to(tl.int32), tl.where(place == 0, block, count)
    return 0, block * block_m + place


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    """Return x (1 + tanh u) / 2, with u = sqrt(2/pi) (x + 0.044715 x^3), which is x / (1 + exp(-2u))."""
    minus = -1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1 + tl.exp(tl.minimum(minus, 80.0)))


@triton.jit
def _by_slices(tile: tl.tensor, block_n: tl.constexpr, block_m: tl.constexpr) -> tl.tensor:
    """Return rows 4j + i of a tile [block_n, block_m] moved to i * block_n/4 + j."""
    split = tl.reshape(tile, [block_n // 4, 4, block_m])
    return tl.reshape(tl.permute(split, [1, 0, 2]), [block_n, block_m])


@triton.jit
def matmul(
    x: tl.tensor,
    words: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    experts: tl.tensor,
    share: tl.tensor,
    n: tl.tensor,
    kh: tl.tensor,
    groups: tl.tensor,
    count: tl.tensor,
    top_k: tl.tensor,
    number: tl.tensor,
    route: tl.constexpr,
    gated: tl.constexpr,
    group_h: tl.constexpr,
    even: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_h: tl.constexpr,
    fence: tl.constexpr,
    interpreted: tl.constexpr,
) -> None:
    """Compute one block of out: block_m pairs of one expert, block_n features.

    The grid is blocks of n by blocks of pairs.

    Args:
        x: [rows, 4 kh], by slices; of pair p it is row p // top_k.
        words: int16 [number, n, kh], or [number, 2n, kh] where gated.
        scale: [number, groups, n or 2n].
        out: [count, n].
        pairs: int32 [blocks, block_m], sorted; or the expert of each pair, integers [count]; or None.
        experts: int32 [blocks], the expert of each sorted block, -1 for none.
        share: floats [count], how much of each pair, or None.
        n: features of out.
        kh: halfwords of a row.
        groups: scales of a row.
        count: pairs.
        top_k: experts of a token where x has tokens, 1 where it has pairs.
        number: number of experts; a pair sent to none is left out.
        route: `sorted`; `pairs`, one block for each; `rows`, one expert and row p is pair p.
        gated: rows of gate, then rows of up: out is gelu_tanh(x gate^T) * (x up^T), by slices.
        group_h: halfwords of a group, 0 where a row has one scale.
        even: whether block_h divides kh.
        block_m: pairs of a block.
        block_n: features of a block; at most n.
        block_h: halfwords of a step; a power of two times group_h, or the reverse.
        fence: halfwords of a thread in a step, where wgmma may follow and Triton leaves its fence out; otherwise 0.
        interpreted: whether this runs in Triton's interpreter.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    expert, pair = _rows(pairs, experts, count, tl.program_id(1), block_m, route)
    if route != "rows":  # noqa: SIM102 - this is a constant, the next is not
        if (expert < 0) | (expert >= number):
            return
    first = tl.minimum(tl.program_id(0) * block_n, n - block_n)
    rows: tl.constexpr = 2 * block_n if gated else block_n
    place = tl.arange(0, rows)
    row = first + place % block_n + (place // block_n) * n
    h = tl.arange(0, block_h)
    width = 2 * n if gated else n
    if route != "rows":
        words += expert.to(tl.int64) * width * kh
        scale += expert.to(tl.int64) * width * groups
    words_at = words + row[:, None] * kh + h[None, :]
    x_at = x + (pair // top_k).to(tl.int64)[:, None] * (4 * kh) + h[None, :]
    known = (pair < count)[:, None]
    total = tl.zeros([rows, block_m], tl.float32)
    tl.assume(kh > 0)
    for begin in range(0, kh, block_h):
        inside = (begin + h < kh)[None, :]
        halfwords = _read(words_at + begin, inside, even)
        if fence and dtype != tl.float32:
            text: tl.constexpr = fenced(fence)
            registers: tl.constexpr = passed(fence)
            halfwords = tl.inline_asm_elementwise(text, registers, [halfwords], tl.int16, is_pure=True, pack=fence)
        scales = _scales(scale, row, begin, width, groups, group_h, rows, block_h, even, dtype, interpreted)
        for i in tl.static_range(4):
            tokens = tl.trans(_tokens(x_at + (i * kh + begin), known if even else known & inside, interpreted))
            weight = _weight(halfwords, scales, i, dtype, interpreted)
            total = tl.dot(weight, tokens, total, input_precision="ieee")
    if group_h == 0:
        total *= nearest(tl.load(scale + row), dtype, interpreted).to(tl.float32)[:, None]
    column = first + tl.arange(0, block_n)
    if gated:
        gate, up = tl.split(tl.permute(tl.reshape(total, [2, block_n, block_m]), [1, 2, 0]))
        total = _by_slices(_gelu(gate) * up, block_n, block_m)
        place = tl.arange(0, block_n)
        column = (place // (block_n // 4)) * (n // 4) + first // 4 + place % (block_n // 4)
    if share is not None:
        total *= tl.load(share + pair, mask=pair < count, other=0).to(tl.float32)[None, :]
    out_at = out + pair.to(tl.int64)[None, :] * n + column[:, None]
    tl.store(out_at, nearest(total, dtype, interpreted), mask=(pair < count)[None, :])


FENCES = [int(part) for part in re.findall(r"\d+", triton.__version__)[:3]] >= [3, 7, 1]
"""True if Triton puts a fence between copies to shared memory and wgmma:
https://github.com/triton-lang/triton/pull/9610."""

INTERPRETED = not isinstance(matmul, triton.JITFunction)
"""True if Triton was imported with TRITON_INTERPRET=1: kernels then run on CPU tensors, slowly, as the tests do."""
