"""One block of a grid: its registers, which of its threads are where, and what is under way.

All threads run in step. Where a branch divides them, those at the earliest instruction go on alone until they meet the
others, or a barrier, or end: so what a warp or more must do together is done together where the kernel allows it, and
is refused where it does not. Nothing follows from the order that this gives: see `memory`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from helpers.ptx.memory import Fault
from helpers.ptx.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from helpers.ptx.arithmetic import Array
    from helpers.ptx.memory import Global
    from helpers.ptx.parse import Program

__all__ = ["Block", "Copy", "Product", "Step", "run"]

_UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}

Copy: TypeAlias = "tuple[Array, Array, Array]"
"""Rows of shared memory, data and threads of an asynchronous copy."""

Product: TypeAlias = "tuple[Sequence[int], Array, int]"
"""Registers that a product of four warps has; rows of its operand in shared memory, and their width."""


class Block:
    """One block.

    Args:
        program: program that it runs.
        memory: global.
        shared_bytes: bytes of shared memory.
        parameters: bits of each, by name.
        place: position of the block in the grid, x, y, z.
        grid: blocks in x, y, z.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a launch has so many parts
        self,
        program: Program,
        memory: Global,
        shared_bytes: int,
        parameters: Mapping[str, int],
        place: tuple[int, ...],
        grid: tuple[int, ...],
    ) -> None:
        threads = program.threads
        self.names, self.bits = list(program.registers), list(program.registers.values())
        self.values: list[Array | None] = [None] * len(self.names)
        self.written = [0] * len(self.names)
        self.everyone = np.arange(threads)
        self.memory, self.parameters = memory, parameters
        self.shared = Shared(shared_bytes, [instruction.text for instruction in program.instructions])
        self.number = place[0] + grid[0] * (place[1] + grid[1] * place[2])
        special = {"%tid.x": self.everyone, "%laneid": self.everyone % 32, "%ntid.x": np.full(threads, threads)}
        for axis, at, size in zip("xyz", place, grid, strict=True):
            special |= {f"%ctaid.{axis}": np.full(threads, at), f"%nctaid.{axis}": np.full(threads, size)}
        self.special = {name: value.astype(np.uint32) for name, value in special.items()}
        self.clock = self.pc = self.fenced = 0
        self.mask: Array | None = None
        self.parked: list[tuple[int, Array]] = []
        self.waiting: list[tuple[int, Array]] = []
        self.gone = np.zeros(threads, np.bool_)
        self.running = True
        self.copies: list[list[Copy]] = [[]]
        self.products: list[list[Product]] = [[]]
        self.held: dict[int, Array] = {}

    def read(self, slot: int) -> Array:
        """A register of all threads."""
        value = self.values[slot]
        if value is None:
            raise Fault(f"{self.names[slot]} has no value: never written, or in the hands of a product not waited for")
        return value

    def write(self, slot: int, value: Array) -> None:
        """Set a register of the threads that run."""
        bits = _UNSIGNED[self.bits[slot]]
        value = np.ascontiguousarray(value).view(bits)
        if self.mask is not None:
            before = self.values[slot]
            value = np.where(self.mask, value, bits(0) if before is None else before)
        self.values[slot] = value
        self.written[slot] = self.clock

    def threads(self) -> Array:
        """Those that run."""
        return self.everyone if self.mask is None else np.flatnonzero(self.mask)

    def warps(self) -> Array:
        """Threads of the warps that run, all of each."""
        if self.mask is not None and (self.mask.reshape(-1, 32).any(1) != self.mask.reshape(-1, 32).all(1)).any():
            raise Fault("a part of a warp runs what all of it must")
        return self.threads()

    def spread(self, value: Array) -> Array:
        """Values of the threads that run, at their places among all."""
        if self.mask is None:
            return value
        out = np.zeros((len(self.everyone), *value.shape[1:]), value.dtype)
        out[self.threads()] = value
        return out

    def all_of_it(self) -> None:
        """Refuse what is only known here of a whole block."""
        if self.mask is not None:
            raise Fault("a part of the block runs what is only known here of all of it")

    def branch(self, target: int, taken: Array | None) -> None:
        """Go to an instruction, those threads or all that run."""
        if taken is None or (taken if self.mask is None else taken[self.mask]).all():
            self.pc = target
            return
        active = np.ones_like(taken) if self.mask is None else self.mask
        if (taken & active).any():
            self.parked.append((target, taken & active))
            self.mask = active & ~taken

    def choose(self) -> None:
        """Go on with the threads that are furthest behind, and all that are at the same place."""
        groups = self.parked if self.mask is None else [*self.parked, (self.pc, self.mask)]
        self.pc = min(at for at, _ in groups)
        mask = np.any([mask for at, mask in groups if at == self.pc], axis=0)
        self.parked = [(at, mask) for at, mask in groups if at != self.pc]
        self.mask = None if mask.all() else mask

    def barrier(self) -> None:
        """Wait for all threads."""
        if self.mask is None:
            self.shared.barrier()
            return
        self.waiting.append((self.pc, self.mask))
        self.mask = None
        if not self.parked:
            if self.gone.any():
                raise Fault("a barrier that some threads have ended without")
            self.shared.barrier()
            self.parked, self.waiting = self.waiting, []
        self.choose()

    def end(self) -> None:
        """No more of the threads that run."""
        self.gone |= True if self.mask is None else self.mask
        self.mask = None
        if self.parked:
            self.choose()
        elif self.waiting:
            raise Fault("threads end, and others wait for them at a barrier")
        else:
            self.shared.barrier()
            self.running = False

    def wait_copies(self, left: int) -> None:
        """Let all but the last groups of asynchronous copies arrive."""
        while len(self.copies) - 1 > left:
            for rows, data, threads in self.copies.pop(0):
                self.shared.end_copy(rows, data, threads)

    def wait_products(self, left: int) -> None:
        """Take the results of all but the last groups of products."""
        count = max(len(self.products) - 1 - left, 0)
        done, self.products = self.products[:count], self.products[count:]
        for _, rows, width in (product for group in done for product in group):
            self.shared.end_product(rows, width)
        kept = {slot for group in self.products for slots, _, _ in group for slot in slots}
        for slot in self.held.keys() - kept:
            if self.values[slot] is not None:
                raise Fault(f"{self.names[slot]} was written while a product had it")
            self.values[slot] = self.held.pop(slot)


Step: TypeAlias = "Callable[[Block], None]"
"""Effect of one instruction."""


def run(program: Program, steps: Sequence[Step], block: Block) -> None:
    """Run a block to its end.

    Raises:
        Fault: it does what it must not; the instruction is named.
    """
    try:
        while block.running:
            at = block.shared.instruction = block.pc
            block.pc += 1
            block.clock += 1
            steps[at](block)
            if block.parked:
                block.choose()
    except Fault as fault:
        text = program.instructions[block.shared.instruction].text
        raise Fault(f"{program.name}, block {block.number}, `{text}`: {fault}") from fault
