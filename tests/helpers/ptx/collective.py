"""Instructions that a warp, or four, carry out together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx.arithmetic import floats
from helpers.ptx.matrix import accumulate, from_result, left, operand, right, scattered, to_result, transposed
from helpers.ptx.memory import Fault
from helpers.ptx.shared import SOMEONE

if TYPE_CHECKING:
    from helpers.ptx.arithmetic import Array
    from helpers.ptx.machine import Block, Step
    from helpers.ptx.operands import Operands
    from helpers.ptx.parse import Instruction

__all__ = ["ballot", "load_matrix", "mma", "reduce", "shuffle", "store_matrix", "wgmma"]

_WARP_STORE = -16
"""Writer of stmatrix's bytes: less than this by the number of the warp, in place of a thread."""


def shuffle(operands: Operands, instruction: Instruction, mode: str) -> Step:
    """Take the value of another lane of the segment; one's own where there is none."""
    to, of, by, clamp, members = instruction.operands
    if operands.constant(members) != -1 or "|" in to:
        raise ValueError("a part of a warp, or a predicate")
    target, source, distance = operands.target(to, "b32"), operands.source(of, "b32"), operands.source(by, "u32")
    packed = operands.constant(clamp)
    segment, limit = packed >> 8 & 31, packed & 31

    def run(block: Block) -> None:
        lane = block.everyone % 32
        step = (distance(block) & 31).astype(np.int64)
        low, high = lane & segment, lane & segment | limit & ~segment
        match mode:
            case "up":
                other = lane - step
                inside = other >= high
            case "down":
                other = lane + step
                inside = other <= high
            case "bfly":
                other = lane ^ step
                inside = other <= high
            case _:
                other = low | step & ~segment
                inside = other <= high
        block.warps()
        target(block, source(block)[np.where(inside, block.everyone - lane + other, block.everyone)])

    return run


def reduce(operands: Operands, instruction: Instruction) -> Step:
    """The sum over a warp, for all its threads."""
    to, of, members = instruction.operands
    target, source, mask = operands.target(to, "s32"), operands.source(of, "s32"), operands.source(members, "s32")

    def run(block: Block) -> None:
        if (mask(block)[block.warps()] != -1).any():
            raise Fault("a reduction over a part of a warp, which is not known here")
        sums = source(block).reshape(-1, 32).sum(1, dtype=np.int32)
        target(block, np.repeat(sums, 32))

    return run


def ballot(operands: Operands, instruction: Instruction) -> Step:
    """A bit for each lane of the warp, for all its threads."""
    to, of, members = instruction.operands
    if operands.constant(members) != -1:
        raise ValueError("a part of a warp")
    target, source = operands.target(to, "b32"), operands.source(of, "pred")

    def run(block: Block) -> None:
        block.warps()
        bits = source(block).reshape(-1, 32).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        target(block, np.repeat(bits.sum(1, dtype=np.uint32), 32))

    return run


def load_matrix(operands: Operands, instruction: Instruction, count: str, trans: str | None) -> Step:
    to, at = instruction.operands
    targets, address = [operands.target(name, "b32") for name in operands.vector(to)], operands.address(at)
    matrices = int(count)

    def run(block: Block) -> None:
        threads = block.warps()
        rows = address(block)[threads].reshape(-1, 32)[:, : 8 * matrices].ravel()
        warps = np.repeat(threads[::32] // 32, 8 * matrices)
        data = block.shared.load(rows, 16, np.full(len(rows), SOMEONE), warps).reshape(-1, matrices, 8, 16)
        lanes = transposed(data, trans=trans is not None)
        for matrix, target in enumerate(targets):
            target(block, block.spread(lanes[:, matrix].ravel()))

    return run


def store_matrix(operands: Operands, instruction: Instruction, count: str, trans: str | None) -> Step:
    at, of = instruction.operands
    sources, address = [operands.source(name, "b32") for name in operands.vector(of)], operands.address(at)
    matrices = int(count)

    def run(block: Block) -> None:
        threads = block.warps()
        rows = address(block)[threads].reshape(-1, 32)[:, : 8 * matrices].ravel()
        lanes = np.stack([source(block)[threads].reshape(-1, 32) for source in sources], 1)
        data = scattered(lanes, trans=trans is not None).reshape(-1, 16)
        warps = np.repeat(threads[::32] // 32, 8 * matrices)
        block.shared.store(rows, data, _WARP_STORE - warps, warps)

    return run


def mma(operands: Operands, instruction: Instruction, kind: str) -> Step:
    names = [operands.vector(text) for text in instruction.operands]
    targets = [operands.target(name, "f32") for name in names[0]]
    a, b = ([operands.source(name, "b32") for name in group] for group in names[1:3])
    c = [operands.source(name, "f32") for name in names[3]]

    def run(block: Block) -> None:
        threads = block.warps()
        columns = [np.stack([source(block)[threads] for source in group], 1) for group in (a, b, c)]
        result = accumulate(left(columns[0], kind), right(columns[1], kind), from_result(columns[2]))
        values = block.spread(to_result(result))
        for column, target in enumerate(targets):
            target(block, values[:, column])

    return run


def wgmma(operands: Operands, instruction: Instruction, columns: str, kind: str) -> Step:
    """A product of four warps: A in registers, B in shared memory, both taken until it is waited for."""
    of_result, of_left, at, scale, *fixed = instruction.operands
    if [operands.constant(text) for text in fixed] != [1, 1, 0] or not of_left.startswith("{"):
        raise ValueError("A in shared memory, a sign, or B transposed")
    n = int(columns)
    results, lefts = ([operands.slots[name] for name in operands.vector(text)] for text in (of_result, of_left))
    descriptor, adds = operands.source(at, "u64"), operands.source(scale, "pred")

    def run(block: Block) -> None:
        block.all_of_it()
        a = left(np.stack([_take(block, slot) for slot in lefts], 1), kind).reshape(-1, 64, 16)
        c = np.zeros((len(a), 64, n), np.float32)
        if (added := adds(block)).any():
            before = from_result(np.stack([_take(block, slot) for slot in results], 1).view(np.float32))
            c = np.where(added[::128, None, None], before.reshape(c.shape), c)
        seen = descriptor(block).reshape(-1, 128)
        if (seen != seen[:, :1]).any() or (added.reshape(-1, 128) != added[::128, None]).any():
            raise Fault("descriptors or predicates differ between threads")
        held = [*results, *lefts]
        b = np.empty((len(a), 16, n), np.float32)
        for group, one in enumerate(seen[:, 0]):
            data, rows = block.shared.begin_product(operand(int(one), n).ravel(), 16)
            b[group] = floats(data.reshape(n, 32).view(np.uint16), kind).T
            block.products[-1].append((held, rows, 16))
        values = to_result(accumulate(a, b, c).reshape(-1, 16, n)).view(np.uint32)
        for column, slot in enumerate(results):
            block.held[slot] = np.ascontiguousarray(values[:, column])
        for slot in lefts:
            if slot not in block.held:
                block.held[slot] = block.read(slot)
        for slot in held:
            block.values[slot] = None

    return run


def _take(block: Block, slot: int) -> Array:
    """A register for a product: from one before it, or written before the last wgmma.fence."""
    if slot in block.held:
        return block.held[slot]
    if block.written[slot] > block.fenced:
        raise Fault(f"{block.names[slot]} was written after the last wgmma.fence")
    return block.read(slot)
