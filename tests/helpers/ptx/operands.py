"""Operands of an instruction, made into functions of a block."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from helpers.ptx.arithmetic import DTYPES
from helpers.ptx.shared import SHARED_BASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.ptx.arithmetic import Array
    from helpers.ptx.machine import Block
    from helpers.ptx.parse import Instruction, Program

    Source: TypeAlias = Callable[[Block], Array]
    Target: TypeAlias = Callable[[Block, Array], None]

__all__ = ["Operands"]

_ADDRESS = re.compile(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_SPECIAL = {"%tid.x", "%ntid.x", "%laneid", *(f"%{name}.{axis}" for name in ("ctaid", "nctaid") for axis in "xyz")}


class Operands:
    """Operands of a program: registers, numbers, addresses.

    Args:
        program: whose.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.slots = {name: slot for slot, name in enumerate(program.registers)}

    def source(self, text: str, kind: str) -> Source:
        """An operand of a type; a wider register gives its low bits."""
        dtype = np.dtype(DTYPES[kind])
        if text in _SPECIAL:
            return lambda block: block.special[text].astype(dtype)
        if text not in self.slots:
            value = np.full(self.program.threads, self.number(text, dtype))
            return lambda _: value
        slot, bits = self.slots[text], self.program.registers[text]
        if bits == (1 if kind == "pred" else 8 * dtype.itemsize):
            return lambda block: block.read(slot).view(dtype)
        if bits < 8 * dtype.itemsize or bits == 1:
            raise ValueError(f"{text} as {kind}")
        return lambda block: block.read(slot).astype(f"u{dtype.itemsize}").view(dtype)

    def number(self, text: str, dtype: np.dtype[np.generic]) -> Any:  # noqa: ANN401 - of numpy's types
        """A number of a type."""
        bits = SHARED_BASE if text == "global_smem" else int(re.sub("^0f", "0x", text.removesuffix("U")), 0)
        if dtype.kind == "b":
            return np.bool_(bits)
        unsigned = np.array(bits & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}")
        return unsigned.view(dtype)[()]

    def constant(self, text: str) -> int:
        """A number that must stand in the text."""
        return int(text, 0)

    def target(self, text: str, kind: str) -> Target:
        """Return the place of a result of a type; the rest of a wider register is zeros or the sign."""
        slot, bits, dtype = self.slots[text], self.program.registers[text], np.dtype(DTYPES[kind])
        own = 1 if kind == "pred" else 8 * dtype.itemsize
        if bits == own:
            return lambda block, value: block.write(slot, value.astype(dtype, copy=False))
        if bits < own or bits == 1:
            raise ValueError(f"{text} as {kind}")
        wide = f"{'i' if dtype.kind == 'i' else 'u'}{bits // 8}"
        return lambda block, value: block.write(slot, value.view(dtype).astype(wide))

    def vector(self, text: str) -> list[str]:
        """Registers in braces, or one without."""
        return [name.strip() for name in text.strip("{}").split(",")]

    def address(self, text: str) -> Source:
        """Return the source of an address in brackets."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise ValueError(text)
        kind = "u64" if self.program.registers.get(found[1]) == 64 else "u32"
        base, offset = self.source(found[1], kind), np.int64(int(found[2] or "0", 0))
        return lambda block: base(block).astype(np.int64) + offset

    def condition(self, instruction: Instruction) -> Source:
        """Return the source of an instruction's predicate."""
        value = self.source(instruction.guard, "pred")
        return (lambda block: ~value(block)) if instruction.unless else value
