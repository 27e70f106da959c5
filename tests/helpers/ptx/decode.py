"""An instruction's text made into a function of a block, once for all blocks.

What is not known here in exactly this form, opcode, modifiers and operands, raises `Fault` before anything runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from helpers.ptx import collective
from helpers.ptx.arithmetic import DTYPES, TABLE
from helpers.ptx.memory import Fault
from helpers.ptx.operands import Operands
from helpers.ptx.shared import ATOMIC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helpers.ptx.machine import Block, Step
    from helpers.ptx.parse import Instruction, Program

__all__ = ["decode"]


def decode(program: Program) -> list[Step]:
    """Functions of all instructions, in order."""
    operands = Operands(program)
    return [_step(operands, instruction) for instruction in program.instructions]


def _step(operands: Operands, instruction: Instruction) -> Step:
    try:
        if build := _find(_CONTROL, instruction.opcode):
            return build(operands, instruction)
        build = _find(_FORMS, instruction.opcode) or _elementwise
        return _guarded(operands, instruction, build(operands, instruction))
    except (KeyError, ValueError) as error:
        raise Fault(f"`{instruction.text}`: not known here: {error}") from error


def _find(forms: Mapping[str, Callable[..., Step]], opcode: str) -> Callable[..., Step] | None:
    """Return the function that builds an opcode, given the parts of it that vary."""
    for pattern, build in forms.items():
        if found := re.fullmatch(pattern, opcode):
            return lambda operands, instruction: build(operands, instruction, *found.groups())
    return None


def _guarded(operands: Operands, instruction: Instruction, step: Step) -> Step:
    """Only for threads where the predicate says so."""
    if not instruction.guard:
        return step
    condition = operands.condition(instruction)

    def run(block: Block) -> None:
        before = block.mask
        mask = condition(block) if before is None else condition(block) & before
        if mask.any():
            block.mask = None if mask.all() else mask
            step(block)
            block.mask = before

    return run


def _elementwise(operands: Operands, instruction: Instruction) -> Step:
    function, result, kinds = TABLE[instruction.opcode]
    target_text, *texts = instruction.operands
    if len(texts) != len(kinds):
        raise ValueError(f"{len(texts)} operands")
    target = operands.target(target_text, result)
    constants = [operands.constant(text) for text, kind in zip(texts, kinds, strict=True) if kind == "const"]
    sources = [operands.source(text, kind) for text, kind in zip(texts, kinds, strict=True) if kind != "const"]
    return lambda block: target(block, function(*[source(block) for source in sources], *constants))


def _move(operands: Operands, instruction: Instruction, kind: str) -> Step:
    """Copy; or take a register apart, or put one together, low bits first."""
    to, of = instruction.operands
    if to.startswith("{"):
        names = operands.vector(to)
        part = f"b{np.dtype(DTYPES[kind]).itemsize * 8 // len(names)}"
        targets, source = [operands.target(name, part) for name in names], operands.source(of, kind)

        def take_apart(block: Block) -> None:
            columns = np.ascontiguousarray(source(block)).view(DTYPES[part]).reshape(-1, len(names))
            for column, target in enumerate(targets):
                target(block, columns[:, column])

        return take_apart
    target = operands.target(to, kind)
    if of.startswith("{"):
        names = operands.vector(of)
        part = f"b{np.dtype(DTYPES[kind]).itemsize * 8 // len(names)}"
        sources = [operands.source(name, part) for name in names]
        return lambda block: target(block, np.stack([s(block) for s in sources], 1).view(DTYPES[kind])[:, 0])
    source = operands.source(of, kind)
    return lambda block: target(block, source(block))


def _parameter(operands: Operands, instruction: Instruction, kind: str) -> Step:
    to, name = instruction.operands
    target, name = operands.target(to, kind), name.strip("[] ")
    if name not in operands.program.parameters:
        raise ValueError(name)
    dtype = np.dtype(DTYPES[kind])
    mask = (1 << 8 * dtype.itemsize) - 1

    def run(block: Block) -> None:
        bits = np.full(len(block.everyone), block.parameters[name] & mask, f"u{dtype.itemsize}")
        target(block, bits.view(dtype))

    return run


def _load(operands: Operands, instruction: Instruction, space: str, kind: str) -> Step:
    to, at = instruction.operands
    targets = [operands.target(name, kind) for name in operands.vector(to)]
    address, dtype = operands.address(at), np.dtype(DTYPES[kind])
    width = dtype.itemsize * len(targets)

    def run(block: Block) -> None:
        threads = block.threads()
        where = address(block)[threads]
        if space == "global":
            data = block.memory.load(where, width, threads, block.number)
        else:
            data = block.shared.load(where, width, threads)
        values = block.spread(data.view(dtype))
        for column, target in enumerate(targets):
            target(block, values[:, column])

    return run


def _store(operands: Operands, instruction: Instruction, space: str, kind: str) -> Step:
    at, of = instruction.operands
    sources = [operands.source(name, kind) for name in operands.vector(of)]
    address = operands.address(at)

    def run(block: Block) -> None:
        threads = block.threads()
        where = address(block)[threads]
        data = np.stack([source(block)[threads] for source in sources], 1).view(np.uint8)
        if space == "global":
            block.memory.store(where, data, threads, block.number)
        else:
            block.shared.store(where, data, threads)

    return run


def _atomic_add(operands: Operands, instruction: Instruction) -> Step:
    """One thread after the other; which is first is not said, and what was there before differs by it."""
    to, at, of = instruction.operands
    target, address, source = operands.target(to, "u32"), operands.address(at), operands.source(of, "u32")

    def run(block: Block) -> None:
        threads = block.threads()
        where, values = address(block)[threads], source(block)[threads]
        before = np.empty(len(threads), np.uint32)
        anyone = np.full(1, ATOMIC)
        for place in range(len(threads)):
            one = where[place : place + 1]
            warp = threads[place : place + 1] // 32
            old = block.shared.load(one, 4, anyone, warp).view(np.uint32)
            before[place] = old[0, 0]
            block.shared.store(one, (old + values[place]).view(np.uint8), anyone, warp)
        target(block, block.spread(before))

    return run


def _copy(operands: Operands, instruction: Instruction) -> Step:
    """cp.async: it has read global memory when it is issued, and fills shared memory when it is waited for."""
    to, at, size, *given = instruction.operands
    target, address, width = operands.address(to), operands.address(at), operands.constant(size)
    count = operands.source(given[0], "u32") if given else operands.source(size, "u32")

    def run(block: Block) -> None:
        threads = block.threads()
        sizes = count(block)[threads]
        if ((sizes != 0) & (sizes != width)).any():
            raise Fault("a copy of a part, which is not known here")
        rows = block.shared.begin_copy(target(block)[threads], width, threads)
        data, some = np.zeros((len(threads), width), np.uint8), sizes != 0
        if some.any():
            data[some] = block.memory.load(address(block)[threads][some], width, threads[some], block.number)
        block.copies[-1].append((rows, data, threads))

    return run


def _commit_copies(_: Operands, __: Instruction) -> Step:
    def run(block: Block) -> None:
        block.all_of_it()
        block.copies.append([])

    return run


def _wait_copies(operands: Operands, instruction: Instruction) -> Step:
    left_over = operands.constant(instruction.operands[0])

    def run(block: Block) -> None:
        block.all_of_it()
        block.wait_copies(left_over)

    return run


def _barrier(operands: Operands, instruction: Instruction) -> Step:
    if operands.constant(instruction.operands[0]) or instruction.guard:
        raise ValueError("a barrier that is not the block's")
    return lambda block: block.barrier()


def _warp_barrier(operands: Operands, instruction: Instruction) -> Step:
    if operands.constant(instruction.operands[0]) != -1:
        raise ValueError("a barrier of a part of a warp")

    def run(block: Block) -> None:
        block.all_of_it()
        block.shared.warp_barrier()

    return run


def _branch(operands: Operands, instruction: Instruction) -> Step:
    target = operands.program.labels[instruction.operands[0]]
    if not instruction.guard:
        return lambda block: block.branch(target, None)
    condition = operands.condition(instruction)
    return lambda block: block.branch(target, condition(block))


def _return(_: Operands, instruction: Instruction) -> Step:
    if instruction.guard:
        raise ValueError("a predicate")
    return lambda block: block.end()


def _fence(_: Operands, __: Instruction) -> Step:
    def run(block: Block) -> None:
        block.all_of_it()
        block.shared.fence()

    return run


def _fence_registers(_: Operands, __: Instruction) -> Step:
    def run(block: Block) -> None:
        block.fenced = block.clock

    return run


def _commit_products(_: Operands, __: Instruction) -> Step:
    def run(block: Block) -> None:
        block.all_of_it()
        block.products.append([])

    return run


def _wait_products(operands: Operands, instruction: Instruction) -> Step:
    left_over = operands.constant(instruction.operands[0])

    def run(block: Block) -> None:
        block.all_of_it()
        block.wait_products(left_over)

    return run


_TYPE = r"([bsuf]\d+)"
_SPACE = r"(global|shared)(?:::cta)?(?:\.v[24])?"
_CONTROL: dict[str, Callable[..., Step]] = {
    r"bar\.sync": _barrier,
    r"bra(?:\.uni)?": _branch,
    r"ret": _return,
}
"""These see their predicate themselves."""

_FORMS: dict[str, Callable[..., Step]] = {
    r"mov\.(pred|[bsuf]\d+)": _move,
    rf"ld\.param\.{_TYPE}": _parameter,
    rf"ld\.{_SPACE}\.{_TYPE}": _load,
    rf"st\.{_SPACE}\.{_TYPE}": _store,
    r"atom(?:\.relaxed\.\w+)?\.shared(?:::cta)?\.add\.u32": _atomic_add,
    r"cp\.async\.c[ag]\.shared\.global": _copy,
    r"cp\.async\.commit_group": _commit_copies,
    r"cp\.async\.wait_group": _wait_copies,
    r"bar\.warp\.sync": _warp_barrier,
    r"shfl\.sync\.(up|down|bfly|idx)\.b32": collective.shuffle,
    r"vote\.sync\.ballot\.b32": collective.ballot,
    r"redux\.sync\.add\.[su]32": collective.reduce,
    r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16": collective.load_matrix,
    r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16": collective.store_matrix,
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.\1\.f32": collective.mma,
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\.\2": collective.wgmma,
    r"wgmma\.fence\.sync\.aligned": _fence_registers,
    r"wgmma\.commit_group\.sync\.aligned": _commit_products,
    r"wgmma\.wait_group\.sync\.aligned": _wait_products,
    r"fence\.proxy\.async\.shared::cta": _fence,
}
