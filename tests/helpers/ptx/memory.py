"""Global memory that refuses what is wrong, and remembers what was moved.

An access is of some threads at once: `address` [a], `width` bytes each, data as uint8 [a, width]. Tensors lie apart,
in memory that nobody may touch:

    ....[ x ]....[ words ]....[ out ]....

What is given may only be read; a result only written, and read by the block that wrote it. Two blocks may write the
same value, as the last block of columns does over the one before it, but not different ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helpers.ptx.arithmetic import Array

__all__ = ["Fault", "Global", "Tensor", "Traffic"]

GLOBAL_BASE = 0x7F0000000000
GAP, ALIGNMENT, SECTOR = 4096, 512, 32


class Fault(Exception):
    """A kernel does what it must not, or what is not known here."""


@dataclass(slots=True)
class Tensor:
    """Global memory of one tensor.

    Args:
        name: name of the argument.
        contents: uint8 [bytes].
        defined: bool [bytes], what was ever written.
        result: whether a kernel writes it; others it reads.
        loose: whether a kernel may read what was never written, and so has no meaning to it.
    """

    name: str
    contents: Array
    defined: Array
    result: bool
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one tensor that one launch moved in one direction.

    Args:
        bytes: bytes that threads asked for.
        sectors: sectors of 32 bytes, different ones in each access of a warp: what comes from L2 where L1 never hits.
        widths: number of accesses of a thread, by width in bytes.
        times: int64 [bytes of the tensor], how often each was asked for.
    """

    bytes: int
    sectors: int
    widths: Counter[int]
    times: Array


class Global:
    """The tensors of one launch.

    Args:
        tensors: tensors that the kernel was given.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.starts: list[int] = []
        end = GAP
        for tensor in tensors:
            self.starts.append(end)
            end += -(-len(tensor.contents) // ALIGNMENT) * ALIGNMENT + GAP
        self.bytes, self.owner = np.zeros(end, np.uint8), np.full(end, -1, np.int8)
        self.defined, self.author = np.zeros(end, np.bool_), np.full(end, -1, np.int32)
        for number, (start, tensor) in enumerate(zip(self.starts, tensors, strict=True)):
            place = slice(start, start + len(tensor.contents))
            self.bytes[place], self.defined[place], self.owner[place] = tensor.contents, tensor.defined, number
        self.results = np.array([tensor.result for tensor in tensors], np.bool_)
        self.loose = np.array([tensor.loose for tensor in tensors], np.bool_)
        nothing = np.empty(0, np.int64)
        self.log = {direction: [(nothing, nothing, nothing)] for direction in ("load", "store")}

    def address(self, tensor: int) -> int:
        """Return the address of a tensor's first byte."""
        return GLOBAL_BASE + self.starts[tensor]

    def load(self, address: Array, width: int, threads: Array, block: int) -> Array:
        """Return the bytes at addresses, uint8 [a, width]."""
        at, owner = self._place(address, width, threads, "reads")
        rows = at // width
        if self.results[owner].any():
            own = (self.author.reshape(-1, width)[rows] == block).all(1)
            self._refuse(self.results[owner] & ~own, at, threads, "reads what this launch writes in")
        empty = ~self.defined.reshape(-1, width)[rows].all(1) & ~self.loose[owner]
        self._refuse(empty, at, threads, "reads what was never written in")
        self.log["load"].append((at, threads >> 5, np.full(len(at), width)))
        return np.asarray(self.bytes.reshape(-1, width)[rows])

    def store(self, address: Array, data: Array, threads: Array, block: int) -> None:
        """Write data, uint8 [a, width]."""
        width = data.shape[1]
        at, owner = self._place(address, width, threads, "writes")
        self._refuse(~self.results[owner], at, threads, "writes into")
        rows, contents = at // width, self.bytes.reshape(-1, width)
        before = (self.author.reshape(-1, width)[rows] >= 0) & (contents[rows] != data)
        contents[rows] = data
        other = before.any(1) | (contents[rows] != data).any(1)
        self._refuse(other, at, threads, "writes another value over one that this launch wrote in")
        self.author.reshape(-1, width)[rows] = block
        self.defined.reshape(-1, width)[rows] = True
        self.log["store"].append((at, threads >> 5, np.full(len(at), width)))

    def collect(self) -> None:
        """Give tensors what was written."""
        for start, tensor in zip(self.starts, self.tensors, strict=True):
            place = slice(start, start + len(tensor.contents))
            tensor.contents[:], tensor.defined[:] = self.bytes[place], self.defined[place]

    def traffic(self, name: str, direction: str) -> Traffic:
        """Return the bytes moved so far.

        Args:
            name: name of a tensor.
            direction: `load` or `store`.
        """
        number = [tensor.name for tensor in self.tensors].index(name)
        log = self.log[direction]
        access = np.repeat(np.arange(len(log)), [len(at) for at, _, _ in log])
        at, warp, width = (np.concatenate(part) for part in zip(*log, strict=True))
        own = self.owner[at] == number
        access, at, warp, width = access[own], at[own], warp[own], width[own]
        sectors = np.unique(np.stack((access, warp, at // SECTOR)), axis=1).shape[1]
        change = np.zeros(len(self.tensors[number].contents) + 1, np.int64)
        np.add.at(change, at - self.starts[number], 1)
        np.add.at(change, at - self.starts[number] + width, -1)
        return Traffic(int(width.sum()), sectors, Counter(width.tolist()), np.cumsum(change)[:-1])

    def _place(self, address: Array, width: int, threads: Array, what: str) -> tuple[Array, Array]:
        """Offsets and tensors of accesses that lie in one whole tensor each."""
        at = address.astype(np.int64) - GLOBAL_BASE
        there = np.clip(at, 0, len(self.owner) - 16)
        owner = self.owner[there]
        outside = (at != there) | (owner < 0) | (self.owner[there + width - 1] != owner)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            near = max(int(np.searchsorted(self.starts, at[first], "right")) - 1, 0)
            tensor = self.tensors[near]
            raise Fault(
                f"thread {threads[first]} {what} {width} bytes outside of every tensor, at byte "
                f"{at[first] - self.starts[near]} of {tensor.name}, which has {len(tensor.contents)}"
            )
        self._refuse(at % width != 0, at, threads, f"{what} {width} bytes, not aligned, in")
        return at, owner

    def _refuse(self, wrong: Array, at: Array, threads: Array, what: str) -> None:
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            number = int(self.owner[at[first]])
            raise Fault(
                f"thread {threads[first]} {what} {self.tensors[number].name} at byte {at[first] - self.starts[number]}"
            )
