"""The instrument itself: small kernels written by hand, against what the PTX ISA says, in plain loops."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from helpers.ptx.arithmetic import TABLE
from helpers.ptx.launch import execute
from helpers.ptx.memory import Fault, Tensor

if TYPE_CHECKING:
    from helpers.ptx.arithmetic import Array

GENERATOR = np.random.default_rng()


def kernel(body: str, threads: int, tensors: int) -> str:
    """PTX around a body: %rd0, %rd1... are the tensors, %r0 the thread."""
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 k_{number}" for number in range(tensors))
    loads = "".join(f"ld.param.b64 %rd{number}, [k_{number}];" for number in range(tensors))
    registers = ".reg .pred %p<8>; .reg .b32 %r<200>; .reg .b64 %rd<20>;"
    return f".visible .entry k({parameters})\n.reqntid {threads}\n{{ {registers} {loads} mov.u32 %r0, %tid.x; {body} }}"


def results(body: str, given: Array, out: int, threads: int = 32, shared: int = 0) -> Array:
    """Run a body and return its second tensor, uint32 [out], for the first."""
    found = Tensor("out", np.zeros(4 * out, np.uint8), np.zeros(4 * out, np.bool_), result=True)
    contents = np.ascontiguousarray(given).view(np.uint8).ravel()
    memory = [Tensor("x", contents, np.ones(len(contents), np.bool_), result=False), found]
    execute(kernel(body, threads, 2), memory, (1,), shared)
    assert found.defined.all()
    return found.contents.view(np.uint32)


def own_place(tensor: int, register: int, words: int) -> str:
    """Code for where a thread's words of a tensor begin."""
    return f"mad.wide.u32 %rd{register}, %r0, {4 * words}, %rd{tensor};"


def names(first: int, count: int) -> str:
    return ", ".join(f"%r{first + number}" for number in range(count))


def halves(matrix: Array, kind: str) -> Array:
    """uint16 of small integers."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    return np.asarray(torch.from_numpy(matrix).to(dtype).view(torch.int16).numpy()).view(np.uint16)


def integers(*shape: int) -> Array:
    return np.asarray(GENERATOR.integers(-8, 9, shape), np.float32)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_multiplies_fragments_of_the_isa(kind: str) -> None:
    """PTX ISA, matrix fragments for mma.m16n8k16 with 16-bit floats: row and column of element i of each lane."""
    a, b, c = integers(16, 16), integers(16, 8), integers(16, 8)
    given = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        group, place = lane >> 2, lane % 4
        elements = given[lane, :4].view(np.uint16)
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            elements[i] = halves(a[row : row + 1, place * 2 + (i & 1) + (8 if i >= 4 else 0)], kind)[0]
        elements = given[lane, 4:6].view(np.uint16)
        for i in range(4):
            elements[i] = halves(b[place * 2 + (i & 1) + (8 if i >= 2 else 0), group : group + 1], kind)[0]
        for i in range(4):
            given[lane, 6 + i : 7 + i].view(np.float32)[0] = c[group + (8 if i >= 2 else 0), place * 2 + (i & 1)]
    body = own_place(0, 5, 10) + "".join(f"ld.global.b32 %r{10 + i}, [%rd5+{4 * i}];" for i in range(10))
    operands = f"{{{names(30, 4)}}}, {{{names(10, 4)}}}, {{{names(14, 2)}}}, {{{names(16, 4)}}}"
    body += f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {operands};"
    body += own_place(1, 6, 4) + f"st.global.v4.b32 [%rd6], {{{names(30, 4)}}}; ret;"
    found = results(body, given, 128).view(np.float32).reshape(32, 4)
    wanted = a @ b + c
    for lane in range(32):
        for i in range(4):
            assert found[lane, i] == wanted[(lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)]


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_hands_out_rows(trans: str) -> None:
    """Four 8x8 matrices; row j of matrix i is at the address of lane 8i + j. stmatrix puts them back."""
    given = np.asarray(GENERATOR.integers(0, 1 << 16, (4, 8, 8)), np.uint16)
    body = own_place(0, 5, 4) + f"ld.global.v4.b32 {{{names(10, 4)}}}, [%rd5];"
    body += "shl.b32 %r1, %r0, 4; mov.b32 %r2, global_smem; add.s32 %r1, %r1, %r2;"
    body += f"st.shared.v4.b32 [%r1], {{{names(10, 4)}}}; bar.sync 0;"
    body += f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{{names(20, 4)}}}, [%r1]; bar.sync 0;"
    back = f"stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r1], {{{names(20, 4)}}}; bar.sync 0;"
    back += f"ld.shared.v4.b32 {{{names(20, 4)}}}, [%r1];"
    end = own_place(1, 6, 4) + f"st.global.v4.b32 [%rd6], {{{names(20, 4)}}}; ret;"
    found = results(body + end, given, 128, shared=512).view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        for i in range(4):
            matrix = given[i].T if trans else given[i]
            assert found[lane, i].tolist() == matrix[lane // 4, 2 * (lane % 4) :][:2].tolist()
    assert np.array_equal(results(body + back + end, given, 128, shared=512).view(np.uint16), given.ravel())


WGMMA = {128: 1, 64: 2, 32: 3}


def swizzled(rows: Array, pitch: int) -> Array:
    """Rows of `pitch` bytes, uint8 [n, pitch], as a tile in shared memory: chunks of 16 bytes change places.

    Among eight rows of 128 bytes by the row; of 64, by each two rows; of 32, by each four.
    """
    out = np.empty_like(rows)
    for row in range(len(rows)):
        for chunk in range(pitch // 16):
            to = chunk ^ row * pitch // 128 % (pitch // 16)
            out[row, 16 * to : 16 * to + 16] = rows[row, 16 * chunk : 16 * chunk + 16]
    return out


def wgmma_body(pitch: int, step: int, *, fence: str = "fence.proxy.async.shared::cta;", wait: str = "0") -> str:
    """D = A B + 0 of m64n16k16: A from a thread's 4 words, B from 16 rows of `pitch` bytes after them."""
    body = own_place(0, 5, 4) + f"ld.global.v4.b32 {{{names(10, 4)}}}, [%rd5]; mad.wide.u32 %rd6, %r0, 16, %rd0;"
    body += f"setp.lt.s32 %p0, %r0, {pitch}; @%p0 ld.global.v4.b32 {{{names(20, 4)}}}, [%rd6+2048];"
    body += "shl.b32 %r1, %r0, 4; mov.b32 %r2, global_smem; add.s32 %r1, %r1, %r2;"
    body += f"@%p0 st.shared.v4.b32 [%r1], {{{names(20, 4)}}}; bar.sync 0; {fence}"
    body += f"add.s32 %r2, %r2, {32 * step}; bfe.u32 %r3, %r2, 4, 14; cvt.u64.u32 %rd7, %r3;"
    body += f"or.b64 %rd7, %rd7, {WGMMA[pitch] << 62 | 8 * pitch >> 4 << 32 | 1 << 16}; mov.pred %p1, 0;"
    body += "wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
    body += f"{{{names(30, 8)}}}, {{{names(10, 4)}}}, %rd7, %p1, 1, 1, 0; wgmma.commit_group.sync.aligned;"
    body += f"wgmma.wait_group.sync.aligned {wait};" + own_place(1, 8, 8)
    return body + "".join(f"st.global.b32 [%rd8+{4 * i}], %r{30 + i};" for i in range(8)) + "ret;"


@pytest.mark.parametrize("pitch", WGMMA)
def test_wgmma_reads_swizzled_columns(pitch: int) -> None:
    """PTX ISA, register fragments for wgmma.m64nNk16, and the swizzling modes of B stored by columns."""
    a, b = integers(64, 16), integers(16, pitch // 2)  # the columns of B, and as much of k as a row holds
    words = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        warp, lane = thread // 32, thread % 32
        for i in range(8):
            row = 16 * warp + lane // 4 + 8 * (i // 2 % 2)
            words[thread].view(np.uint16)[i] = halves(a[row, [lane % 4 * 2 + i % 2 + 8 * (i // 4)]], "bf16")[0]
    tile = swizzled(halves(b, "bf16").view(np.uint8), pitch)
    step = pitch // 32 - 1  # the last 16 of k in a row
    given = np.concatenate((words.view(np.uint8).ravel(), tile.ravel()))
    found = results(wgmma_body(pitch, step), given, 1024, 128, 16 * pitch).view(np.float32).reshape(128, 8)
    wanted = a @ b[:, 16 * step :].T
    for thread in range(128):
        for i in range(8):
            row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (i // 2 % 2)
            assert found[thread, i] == wanted[row, 8 * (i // 4) + thread % 4 * 2 + i % 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fence": ""}, "past fence.proxy.async"),
        ({"wait": "1"}, "in the hands of a product"),
    ],
)
def test_wgmma_needs_its_fence_and_its_wait(change: dict[str, str], message: str) -> None:
    with pytest.raises(Fault, match=message):
        results(wgmma_body(128, 0, **change), np.zeros(4096, np.uint8), 1024, 128, 2048)


def nearest(value: Fraction, bits: int, least: int) -> Fraction:
    """Round to a float of so many significant bits, ties to even; 2^least is the smallest."""
    if not value:
        return value
    top = math.frexp(float(value))[1]
    top += (abs(value) >= Fraction(2) ** top) - (abs(value) < Fraction(2) ** (top - 1))
    unit = Fraction(2) ** max(top - bits, least)
    return round(value / unit) * unit


@pytest.mark.parametrize(
    ("opcode", "kind", "bits", "least"),
    [("fma.rn.f32", "f32", 24, -149), ("fma.rn.bf16x2", "bf16", 8, -133), ("fma.rn.f16x2", "f16", 11, -24)],
)
def test_fma_rounds_once(opcode: str, kind: str, bits: int, least: int) -> None:
    """Half of the sums are made to lie next to a tie, where two roundings give another result."""
    rounded = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[kind]
    a, b, c = torch.randn(3, 4096, dtype=torch.float64).to(rounded).double()
    c[::2] = (a * b * (1 + 2.0**-bits) * 2.0 ** torch.randint(-40, 40, (4096,))).to(rounded).double()[::2]
    a, b, c = a.to(rounded), b.to(rounded), c.clamp(-60000, 60000).to(rounded)
    unsigned = np.float32 if kind == "f32" else np.uint32
    words = [value.view(torch.int32 if kind == "f32" else torch.int16).numpy().view(unsigned) for value in (a, b, c)]
    dtype = torch.int32 if kind == "f32" else torch.int16
    out = TABLE[opcode][0](*words).view(np.int32 if kind == "f32" else np.int16)
    found = torch.from_numpy(np.ascontiguousarray(out)).view(dtype).view(rounded).double()
    for one in range(4096):
        exact = Fraction(float(a[one])) * Fraction(float(b[one])) + Fraction(float(c[one]))
        assert Fraction(float(found[one])) == nearest(exact, bits, least), (a[one], b[one], c[one])


def test_integers_are_those_of_c() -> None:
    a = np.asarray(GENERATOR.integers(-(1 << 31), 1 << 31, 999), np.int32)
    b = np.asarray(GENERATOR.integers(-9, 9, 999), np.int32)
    b[b == 0] = 5
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))

    def run(opcode: str, *operands: Any) -> list[int]:  # noqa: ANN401 - arrays of any type, or a number
        found: list[int] = TABLE[opcode][0](*operands).tolist()
        return found

    quotients = [math.trunc(Fraction(x, y)) for x, y in pairs]
    assert run("div.s32", a, b) == quotients
    assert run("rem.s32", a, b) == [x - y * q for (x, y), q in zip(pairs, quotients, strict=True)]
    assert run("mul.wide.s32", a, b) == [x * y for x, y in pairs]
    u, at, length = a.view(np.uint32), b.view(np.uint32) & 31, a.view(np.uint32) >> 27
    fields = list(zip(u.tolist(), a.tolist(), at.tolist(), length.tolist(), strict=True))
    assert run("bfe.u32", u, at, length) == [x >> p & (1 << n) - 1 for x, _, p, n in fields]
    signed = [((x >> p & (1 << n) - 1) ^ (1 << n >> 1)) - (1 << n >> 1) for _, x, p, n in fields]
    assert run("bfe.s32", a, at, length) == signed
    moved = (b & 63).astype(np.uint32)
    assert run("shl.b32", u, moved) == [x << p & 0xFFFFFFFF for x, p in zip(u.tolist(), moved.tolist(), strict=True)]
    assert run("shr.s32", a, moved) == [x >> p for x, p in zip(a.tolist(), moved.tolist(), strict=True)]
    majority = (u & at) | (at & length) | (u & length)
    assert run("lop3.b32", u, at, length, 0xE8) == majority.tolist()
    assert run("prmt.b32", u, at, np.full(999, 0x0123, np.uint32)) == u.byteswap().tolist()


def test_threads_may_part_and_meet() -> None:
    """Each thread counts down from its number, and all meet at a barrier before they read their neighbour's count."""
    body = "mov.b32 %r1, %r0; mov.b32 %r2, 0; mov.b32 %r9, global_smem; shl.b32 %r4, %r0, 2; add.s32 %r4, %r4, %r9;"
    body += "$again: setp.eq.s32 %p0, %r1, 0; @%p0 bra $done; add.s32 %r2, %r2, 2; add.s32 %r1, %r1, -1; bra $again;"
    body += "$done: st.shared.b32 [%r4], %r2; bar.sync 0; xor.b32 %r5, %r4, 4; ld.shared.b32 %r6, [%r5];"
    body += own_place(1, 5, 1) + "st.global.b32 [%rd5], %r6; ret;"
    assert results(body, np.zeros(4), 64, 64, 256).tolist() == [2 * (thread ^ 1) for thread in range(64)]


@pytest.mark.parametrize("threads", [32, 64])
@pytest.mark.parametrize("meet", ["", "bar.warp.sync -1;"])
def test_a_barrier_of_a_warp_is_one_for_its_own_threads(threads: int, meet: str) -> None:
    """Threads read what those at the other end of the block wrote: of one warp, or of two."""
    body = "mov.b32 %r9, global_smem; shl.b32 %r4, %r0, 2; add.s32 %r5, %r4, %r9; st.shared.b32 [%r5], %r0;" + meet
    body += f"xor.b32 %r4, %r4, {4 * threads - 4}; add.s32 %r4, %r4, %r9; ld.shared.b32 %r6, [%r4];"
    body += own_place(1, 5, 1) + "st.global.b32 [%rd5], %r6; ret;"
    if meet and threads == 32:
        assert results(body, np.zeros(4), threads, threads, 256).tolist() == list(range(threads))[::-1]
    else:
        with pytest.raises(Fault, match="race: shared byte"):
            results(body, np.zeros(4), threads, threads, 256)


def test_lanes_tell_each_other() -> None:
    """PTX ISA: ballot sets a bit for each lane; shfl takes from the lane below, above, across, or from one for all."""
    body = "and.b32 %r1, %r0, 5; setp.eq.s32 %p0, %r1, 1; vote.sync.ballot.b32 %r10, %p0, -1; popc.b32 %r11, %r10;"
    body += "mov.b32 %r2, -1; redux.sync.add.s32 %r12, %r0, %r2; shfl.sync.up.b32 %r13, %r0, 3, 0, -1;"
    body += "shfl.sync.down.b32 %r14, %r0, 3, 31, -1; shfl.sync.bfly.b32 %r15, %r0, 6, 31, -1;"
    body += "shfl.sync.idx.b32 %r16, %r0, 9, 31, -1; mov.u32 %r17, %laneid;" + own_place(1, 5, 8)
    body += "".join(f"st.global.b32 [%rd5+{4 * i}], %r{10 + i};" for i in range(8)) + "ret;"
    found = results(body, np.zeros(4), 512, threads=64).reshape(2, 32, 8)
    for warp, lane in np.ndindex(2, 32):
        chosen, first = [other for other in range(32) if other & 5 == 1], 32 * warp
        up, down = lane - 3 if lane >= 3 else lane, lane + 3 if lane + 3 < 32 else lane
        places = [first + other for other in (up, down, lane ^ 6, 9)]
        sums = [sum(1 << other for other in chosen), len(chosen), sum(range(first, first + 32))]
        assert found[warp, lane].tolist() == [*sums, *places, lane]


SMALL = "mov.b32 %r9, global_smem; shl.b32 %r4, %r0, 2; add.s32 %r4, %r4, %r9;" + own_place(1, 5, 1)
WRONG = {
    "outside of every tensor, at byte 128 of out": SMALL + "st.global.b32 [%rd5+4], %r0; ret;",
    "4 bytes, not aligned, in out": SMALL + "setp.lt.s32 %p0, %r0, 5; @%p0 st.global.b32 [%rd5+2], %r0; ret;",
    "writes into x": SMALL + "st.global.b32 [%rd0], %r0; ret;",
    "writes another value": SMALL + "st.global.b32 [%rd1], %r0; ret;",
    "reads what this launch writes": SMALL + "ld.global.b32 %r1, [%rd5]; ret;",
    "never written to shared": SMALL + "ld.shared.b32 %r1, [%r4]; ret;",
    "outside, or not aligned": SMALL + "st.shared.b32 [%r4+4], %r0; ret;",
    "race: shared byte 4 is written": SMALL
    + "st.shared.b32 [%r4], %r0; xor.b32 %r5, %r4, 4; ld.shared.b32 %r1, [%r5]; ret;",
    "a part of a warp": SMALL + "setp.lt.s32 %p0, %r0, 5; @%p0 bra $on; shfl.sync.up.b32 %r1, %r0, 1, 0, -1; $on: ret;",
    "others wait": SMALL + "setp.lt.s32 %p0, %r0, 5; @%p0 bra $on; bar.sync 0; $on: ret;",
    "%r77 has no value": "add.s32 %r1, %r77, 1; ret;",
    "not known here": "add.sat.s32 %r1, %r0, %r0; ret;",
    "copy not waited for": SMALL + "cp.async.ca.shared.global [%r4], [%rd0], 4; st.shared.b32 [%r4], %r0; ret;",
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused(message: str) -> None:
    with pytest.raises(Fault, match=message):
        results(WRONG[message], np.zeros(4), 32, shared=128)
