"""Shared memory of one block, which refuses races and what has not arrived.

Every access is kept until the next barrier of the block, and then no byte may have been written by one thread and
touched by another, in whatever order they happened to run here; between threads of a warp, its own barrier is enough.
What is under way has an owner of its own:

    cp.async    arriving      from the copy until its group is waited for, nobody may touch the bytes
    wgmma       busy          from the product until its group is waited for, nobody may write them
    any write   unfenced      until fence.proxy.async, no wgmma may read them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.memory import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helpers.ptx.arithmetic import Array

__all__ = ["ATOMIC", "SHARED_BASE", "SOMEONE", "Shared"]

SHARED_BASE = 0x400
"""First byte of a program's shared memory on sm_90; wgmma needs it to be a multiple of 1,024."""

SOMEONE, ATOMIC, _NOBODY = -1, -2, -3
"""Numbers in place of a thread: a warp that reads for all its threads, with no single writer seen; any thread in an
atomic operation, which may meet another one."""


@dataclass(slots=True)
class _Access:
    """Rows of `width` bytes that threads touched in one instruction."""

    rows: Array
    width: int
    threads: Array
    warps: Array
    phase: int
    instruction: int


@dataclass(slots=True)
class Shared:
    """Shared memory of one block.

    Args:
        size: bytes.
        texts: texts of the program's instructions.
    """

    size: int
    texts: Sequence[str]
    bytes: Array = field(init=False)
    defined: Array = field(init=False)
    arriving: Array = field(init=False)
    busy: Array = field(init=False)
    unfenced: Array = field(init=False)
    reads: list[_Access] = field(default_factory=list)
    writes: list[_Access] = field(default_factory=list)
    instruction: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        size = -(-self.size // 16) * 16
        self.bytes = np.zeros(size, np.uint8)
        self.defined, self.arriving, self.unfenced = (np.zeros(size, np.bool_) for _ in range(3))
        self.busy = np.zeros(size, np.int32)

    def load(self, address: Array, width: int, threads: Array, warps: Array | None = None) -> Array:
        """Return the bytes at addresses, uint8 [a, width]; `warps` is for threads that are not numbers of threads."""
        rows = self._rows(address, width, threads)
        self._refuse(self.arriving, rows, width, threads, "reads what an asynchronous copy has not been waited for to")
        self._refuse(~self.defined, rows, width, threads, "reads what was never written to")
        self.reads.append(self._access(rows, width, threads, warps))
        return self.bytes.reshape(-1, width)[rows]

    def store(self, address: Array, data: Array, threads: Array, warps: Array | None = None) -> None:
        """Write data, uint8 [a, width]; see `load`."""
        width = data.shape[1]
        self._put(self._write(address, width, threads, warps), data, threads)

    def begin_copy(self, address: Array, width: int, threads: Array) -> Array:
        """Rows that will arrive; nobody may touch them before."""
        rows = self._write(address, width, threads, None)
        self.arriving.reshape(-1, width)[rows] = True
        return rows

    def end_copy(self, rows: Array, data: Array, threads: Array) -> None:
        """Rows that have arrived, written by the threads that waited."""
        width = data.shape[1]
        self.arriving.reshape(-1, width)[rows] = False
        self.writes.append(self._access(rows, width, threads, None))
        self._put(rows, data, threads)

    def begin_product(self, address: Array, width: int) -> tuple[Array, Array]:
        """Return the bytes that a product of four warps reads, and its rows; none may be written until it ends."""
        threads = np.full(len(address), SOMEONE)
        data, rows = self.load(address, width, threads), (address - SHARED_BASE) // width
        self._refuse(self.unfenced, rows, width, threads, "reads, past fence.proxy.async, what was written to")
        self.busy.reshape(-1, width)[rows] += 1
        return data, rows

    def end_product(self, rows: Array, width: int) -> None:
        """A product has been waited for."""
        self.busy.reshape(-1, width)[rows] -= 1

    def fence(self) -> None:
        """All that was written can be seen by products of four warps."""
        self.unfenced[:] = False

    def warp_barrier(self) -> None:
        """The threads of each warp have met: what they do before and after is no race among them."""
        self.phase += 1

    def barrier(self) -> None:
        """All threads have met: look for races since they last did."""
        for phase in {access.phase for access in self.writes}:
            author, home = np.full((2, len(self.bytes)), _NOBODY, np.int32)
            now = [access for access in self.writes if access.phase == phase]
            for access in now:
                self._meet(author, home, access, "written", met=False)
                author.reshape(-1, access.width)[access.rows] = access.threads[:, None]
                home.reshape(-1, access.width)[access.rows] = access.warps[:, None]
            for access in self.reads:
                self._meet(author, home, access, "read", met=access.phase != phase)
            for access in self.writes:
                if access.phase != phase:
                    self._meet(author, home, access, "written", met=True)
        self.reads.clear()
        self.writes.clear()

    def _meet(self, author: Array, home: Array, access: _Access, what: str, *, met: bool) -> None:
        """Refuse an access to what another thread wrote; or, where warps have met between, another warp."""
        before = author.reshape(-1, access.width)[access.rows]
        race = (before != _NOBODY) & (before != access.threads[:, None])
        if race.any() and met:
            race &= home.reshape(-1, access.width)[access.rows] != access.warps[:, None]
        if race.any():
            row, byte = np.argwhere(race)[0]
            raise Fault(
                f"race: shared byte {access.rows[row] * access.width + byte} is written by thread {before[row, byte]} "
                f"and {what} by thread {access.threads[row]} with no barrier between, the latter by "
                f"`{self.texts[access.instruction]}`"
            )

    def _access(self, rows: Array, width: int, threads: Array, warps: Array | None) -> _Access:
        return _Access(rows, width, threads, threads >> 5 if warps is None else warps, self.phase, self.instruction)

    def _write(self, address: Array, width: int, threads: Array, warps: Array | None) -> Array:
        rows = self._rows(address, width, threads)
        self._refuse(self.arriving, rows, width, threads, "writes over an asynchronous copy not waited for to")
        self._refuse(self.busy, rows, width, threads, "writes over the operand of a product not waited for, in")
        self.writes.append(self._access(rows, width, threads, warps))
        return rows

    def _put(self, rows: Array, data: Array, threads: Array) -> None:
        width = data.shape[1]
        contents = self.bytes.reshape(-1, width)
        contents[rows] = data
        differs = contents[rows] != data
        if differs.any():
            row = int(np.argwhere(differs)[0, 0])
            raise Fault(f"race: thread {threads[row]} and another write different values to one shared byte")
        self.defined.reshape(-1, width)[rows] = True
        self.unfenced.reshape(-1, width)[rows] = True

    def _rows(self, address: Array, width: int, threads: Array) -> Array:
        at = address.astype(np.int64) - SHARED_BASE
        wrong = (at < 0) | (at + width > self.size) | (at % width != 0)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise Fault(
                f"thread {threads[first]} touches {width} bytes of shared memory at {at[first]}, of {self.size}: "
                "outside, or not aligned"
            )
        return at // width

    def _refuse(self, state: Array, rows: Array, width: int, threads: Array, what: str) -> None:
        wrong = state.reshape(-1, width)[rows].any(1)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise Fault(f"thread {threads[first]} {what} shared memory at byte {rows[first] * width}")
