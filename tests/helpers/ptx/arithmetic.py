"""Instructions on each thread by itself: one function on arrays for each opcode, in a table.

An opcode that is not in `TABLE`, with exactly its modifiers, is not known. Integers wrap. A float is rounded once, to
nearest and even, from a sum that float64 holds or is rounded to odd: of the two float64 around it, the one whose last
bit is 1, so that no tie can arise from it and rounding again is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DTYPES", "TABLE", "Array", "floats", "odd"]

Array: TypeAlias = np.ndarray[Any, Any]

DTYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "f32": np.float32,
    **{f"{kind}{bits}": getattr(np, f"uint{bits}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": getattr(np, f"int{bits}") for bits in (8, 16, 32, 64)},
}
"""Types of values, by PTX's names; 16-bit floats are kept as their bits."""

TABLE: dict[str, tuple[Callable[..., Array], str, tuple[str, ...]]] = {}
"""Function of each opcode, and the types of its result and arguments; `const` is taken as a number."""


def odd(nearest: Array, error: Array) -> Array:
    """Round to odd what was rounded to nearest.

    Args:
        nearest: floats.
        error: part that was lost, the exact value less this one; only its sign counts.
    """
    bits = nearest.view(f"i{nearest.itemsize}")
    change = (error != 0) & (bits & 1 == 0) & np.isfinite(nearest)
    if not change.any():
        return nearest
    away = (error > 0) == (nearest > 0)
    step = np.where(away, 1, -1).astype(bits.dtype)
    return np.where(change, bits + step, bits).view(nearest.dtype)


def floats(bits: Array, kind: str) -> Array:
    """float32 of the bits of bf16 or f16."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def _narrow(value: Array, kind: str) -> Array:
    """Bits of bf16 or f16 nearest to float64 or float32."""
    if kind == "f16":
        return value.astype(np.float16).view(np.uint16)
    single = value.astype(np.float32)
    bits = odd(single, value - single).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(value), 0x7FFF, nearest).astype(np.uint16)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """The product plus c in float64, rounded to odd; the product of two float32 is exact there."""
    a, b, c = (value.astype(np.float64) for value in (a, b, c))
    product = a * b
    total = product + c
    rest = total - product
    return odd(total, (product - (total - rest)) + (c - rest))


def _fused_single(a: Array, b: Array, c: Array) -> Array:
    return _fused(a, b, c).astype(np.float32)


def _halves(*words: Array) -> list[Array]:
    return [np.ascontiguousarray(word).view(np.uint16).reshape(-1, 2) for word in words]


def _fused_pair(kind: str) -> Callable[..., Array]:
    def run(*words: Array) -> Array:
        return _narrow(_fused(*(floats(half, kind) for half in _halves(*words))), kind).view(np.uint32)[:, 0]

    return run


def _narrow_pair(kind: str) -> Callable[..., Array]:
    def run(high: Array, low: Array) -> Array:
        return _narrow(np.stack((low, high), 1), kind).view(np.uint32)[:, 0]

    return run


def _of_two(function: Callable[..., Array]) -> Callable[..., Array]:
    """Apply a function to pairs of float32 in 64 bits."""

    def run(*words: Array) -> Array:
        result = function(*(np.ascontiguousarray(word).view(np.float32).reshape(-1, 2) for word in words))
        return result.view(np.uint64)[:, 0]

    return run


def _left(value: Array, count: Array) -> Array:
    bits = 8 * value.itemsize
    return np.where(count < bits, value << np.minimum(count, bits - 1).astype(value.dtype), 0).astype(value.dtype)


def _right(value: Array, count: Array) -> Array:
    bits = 8 * value.itemsize
    moved = value >> np.minimum(count, bits - 1).astype(value.dtype)
    return moved if value.dtype.kind == "i" else np.where(count < bits, moved, 0).astype(value.dtype)


def _quotient(a: Array, b: Array) -> Array:
    """Towards zero; of zero it may be anything, and is -1."""
    safe = np.where(b == 0, 1, b)
    down = a // safe
    result = down + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.asarray(np.where(b == 0, ~np.zeros_like(a), result), a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    return np.asarray(a - _quotient(a, b) * b)


def _field(value: Array, at: Array, length: Array) -> Array:
    """Bits at..at+length-1, with zeros beyond the value or, of a signed one, its sign."""
    at, length = at & 0xFF, np.minimum(length & 0xFF, 64).astype(np.int64)
    if value.dtype.kind == "u":
        low = np.where(at < 32, value.astype(np.uint64) >> np.minimum(at, 63), 0)
        kept = np.where(length < 32, low & ((1 << np.minimum(length, 62)) - 1).astype(np.uint64), low)
    else:
        up = np.clip(64 - at.astype(np.int64) - length, 0, 63)
        kept = value.astype(np.int64) << up >> np.minimum(up + at, 63)
        kept = np.where(length == 0, 0, kept)
    return kept.astype(value.dtype)


def _logic(a: Array, b: Array, c: Array, table: int) -> Array:
    """Bit 4a + 2b + c of the table, for each bit of the operands."""
    out = np.zeros_like(a)
    for bit in range(8):
        if table >> bit & 1:
            out |= (a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c)
    return out


def _permute(a: Array, b: Array, select: Array) -> Array:
    """Four bytes of the eight of b and a, by nibbles; the top bit of a nibble copies the byte's sign over it."""
    both = np.stack((a, b), 1).view(np.uint8)
    nibbles = select[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)
    chosen = np.take_along_axis(both, (nibbles & 7).astype(np.int64), 1)
    signs = np.where(chosen & 0x80, 0xFF, 0).astype(np.uint8)
    return np.where(nibbles & 8, signs, chosen).astype(np.uint8).view(np.uint32)[:, 0]


def _wide(kind: str) -> Callable[..., Array]:
    return lambda a, b: a.astype(DTYPES[kind]) * b


def _wide_sum(kind: str) -> Callable[..., Array]:
    return lambda a, b, c: a.astype(DTYPES[kind]) * b + c


def _select(a: Array, b: Array, first: Array) -> Array:
    return np.where(first, a, b)


def _to(kind: str) -> Callable[[Array], Array]:
    return lambda value: value.astype(DTYPES[kind])


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_LOGIC: dict[str, Callable[[Array, Array], Array]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def _integers() -> None:
    for t in (f"{kind}{bits}" for kind in "su" for bits in (16, 32, 64)):
        TABLE[f"add.{t}"] = (lambda a, b: a + b, t, (t, t))
        TABLE[f"sub.{t}"] = (lambda a, b: a - b, t, (t, t))
        TABLE[f"mul.lo.{t}"] = (lambda a, b: a * b, t, (t, t))
        TABLE[f"mad.lo.{t}"] = (lambda a, b, c: a * b + c, t, (t, t, t))
        TABLE[f"min.{t}"], TABLE[f"max.{t}"] = (np.minimum, t, (t, t)), (np.maximum, t, (t, t))
        TABLE[f"div.{t}"], TABLE[f"rem.{t}"] = (_quotient, t, (t, t)), (_remainder, t, (t, t))
        TABLE[f"neg.{t}"], TABLE[f"abs.{t}"] = (np.negative, t, (t,)), (np.abs, t, (t,))
        TABLE[f"shr.{t}"] = (_right, t, (t, "u32"))
        for name, compare in _COMPARE.items():
            TABLE[f"setp.{name}.{t}"] = (compare, "pred", (t, t))
        for source in (f"{kind}{bits}" for kind in "su" for bits in (8, 16, 32, 64)):
            TABLE[f"cvt.{t}.{source}"] = (_to(t), t, (source,))
        TABLE[f"cvt.rn.f32.{t}"] = (_to("f32"), "f32", (t,))
    for kind in "su":
        for half, whole in ((16, 32), (32, 64)):
            t, wide = f"{kind}{half}", f"{kind}{whole}"
            TABLE[f"mul.wide.{t}"] = (_wide(wide), wide, (t, t))
            TABLE[f"mad.wide.{t}"] = (_wide_sum(wide), wide, (t, t, wide))
        TABLE[f"bfe.{kind}32"] = (_field, f"{kind}32", (f"{kind}32", "u32", "u32"))


def _bits() -> None:
    for t in ("b16", "b32", "b64"):
        TABLE[f"shl.{t}"], TABLE[f"shr.{t}"] = (_left, t, (t, "u32")), (_right, t, (t, "u32"))
        for name in ("eq", "ne"):
            TABLE[f"setp.{name}.{t}"] = (_COMPARE[name], "pred", (t, t))
    for t in ("b16", "b32", "b64", "pred"):
        for name, logic in _LOGIC.items():
            TABLE[f"{name}.{t}"] = (logic, t, (t, t))
        TABLE[f"not.{t}"] = (np.invert, t, (t,))
    for t in ("b16", "b32", "b64", "s16", "s32", "s64", "u16", "u32", "u64", "f32"):
        TABLE[f"selp.{t}"] = (_select, t, (t, t, "pred"))
    TABLE["popc.b32"] = (lambda a: np.bitwise_count(a).astype(np.uint32), "u32", ("b32",))
    TABLE["lop3.b32"] = (_logic, "b32", ("b32", "b32", "b32", "const"))
    TABLE["prmt.b32"] = (_permute, "b32", ("b32", "b32", "b32"))


def _single() -> None:
    one, two, three = ("f32",), ("f32", "f32"), ("f32", "f32", "f32")
    for round_ in ("", ".rn"):
        TABLE[f"add{round_}.f32"] = (np.add, "f32", two)
        TABLE[f"sub{round_}.f32"] = (np.subtract, "f32", two)
        TABLE[f"mul{round_}.f32"] = (np.multiply, "f32", two)
    TABLE["fma.rn.f32"] = (_fused_single, "f32", three)
    TABLE["min.f32"], TABLE["max.f32"] = (np.fmin, "f32", two), (np.fmax, "f32", two)
    TABLE["neg.f32"], TABLE["abs.f32"] = (np.negative, "f32", one), (np.abs, "f32", one)
    TABLE["ex2.approx.f32"] = (lambda a: np.exp2(a.astype(np.float64)).astype(np.float32), "f32", one)
    TABLE["div.full.f32"] = (np.divide, "f32", two)
    for name, compare in _COMPARE.items():
        ordered = compare if name != "ne" else lambda a, b: (a < b) | (a > b)
        TABLE[f"setp.{name}.f32"] = (ordered, "pred", two)
    TABLE["setp.neu.f32"] = (np.not_equal, "pred", two)
    for name, function in (("add", np.add), ("mul", np.multiply)):
        TABLE[f"{name}.f32x2"] = TABLE[f"{name}.rn.f32x2"] = (_of_two(function), "b64", ("b64", "b64"))
    TABLE["fma.rn.f32x2"] = (_of_two(_fused_single), "b64", ("b64", "b64", "b64"))


def _half() -> None:
    for kind in ("bf16", "f16"):
        TABLE[f"fma.rn.{kind}x2"] = (_fused_pair(kind), "b32", ("b32", "b32", "b32"))
        TABLE[f"cvt.rn.{kind}x2.f32"] = (_narrow_pair(kind), "b32", ("f32", "f32"))
        TABLE[f"cvt.rn.{kind}.f32"] = (lambda a, kind=kind: _narrow(a, kind), "b16", ("f32",))
        TABLE[f"cvt.f32.{kind}"] = (lambda a, kind=kind: floats(a, kind), "f32", ("b16",))
    for kind, source in (("bf16", "f16"), ("f16", "bf16")):
        TABLE[f"cvt.rn.{kind}.{source}"] = (
            lambda a, kind=kind, source=source: _narrow(floats(a, source), kind),
            "b16",
            ("b16",),
        )


_integers()
_bits()
_single()
_half()
