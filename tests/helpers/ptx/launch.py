"""Stands where Triton's launcher stands: compiles a kernel for a GPU that is not here, and runs it block by block.

    with emulated(90) as launches:
        moe(x, chosen, share, gate_up, down)        the library's own function, on CPU tensors
    launches[0].traffic("words", "load")

Arguments are bound and specialised as Triton does: an integer of 1 is a constant, one that 16 divides is known to be,
and so are pointers. A tensor is the bytes that it spans, and no more.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from g4convert.forward.triton import fused
from helpers.ptx.decode import decode
from helpers.ptx.machine import Block, run
from helpers.ptx.memory import Global, Tensor
from helpers.ptx.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from helpers.ptx.arithmetic import Array
    from helpers.ptx.machine import Step
    from helpers.ptx.memory import Traffic
    from helpers.ptx.parse import Program

__all__ = ["Launch", "emulated", "execute"]

RESULTS = {"matmul": {"out"}, "align": {"pairs", "experts"}, "top_k_sum": {"out"}}
"""Arguments that a kernel writes; it may not write others."""

LOOSE = {("matmul", "pairs")}
"""Arguments of a kernel that may be read before they are written: blocks without an expert have no pairs either, and
see both before they end. Such bytes are 255 here, so numbers are -1, and floats NaN."""

_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int16": "i16", "int32": "i32", "int64": "i64"}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch that has run.

    Args:
        kernel: its name.
        grid: blocks in x, y, z.
        ptx: PTX that ran.
        arguments: by name.
        memory: as it was left.
    """

    kernel: str
    grid: tuple[int, ...]
    ptx: str
    arguments: Mapping[str, Any]
    memory: Global

    def traffic(self, name: str, direction: str = "load") -> Traffic:
        """Return the bytes moved of one argument."""
        return self.memory.traffic(name, direction)


class Emulator:
    """Launches kernels of one architecture.

    Args:
        architecture: 80, 89, 90, 100 or 120.
        edit: changes the PTX of a kernel, by its name, before it runs.
    """

    def __init__(self, architecture: int, edit: Callable[[str, str], str]) -> None:
        self.architecture, self.edit = architecture, edit
        self.launches: list[Launch] = []
        self.defined: dict[int, Array] = {}
        self.kept: list[torch.Tensor] = []  # so that no other tensor comes to their memory

    def launch(self, kernel: Any, grid: tuple[int, ...], *given: object, **named: Any) -> None:  # noqa: ANN401 - Triton's
        """Run every block."""
        options = {name: named.pop(name) for name in list(named) if name not in kernel.arg_names}
        arguments = inspect.signature(kernel.fn).bind(*given, **named).arguments
        compiled = _compile(kernel, _key(kernel, arguments), self.architecture, tuple(sorted(options.items())))
        ptx = self.edit(kernel.__name__, compiled.asm["ptx"])
        names = [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]
        values = [self._argument(kernel.__name__, name, arguments[name]) for name in names]
        memory = execute(ptx, [*values, 0, 0], grid, compiled.metadata.shared)  # scratch memory, which these lack
        self.launches.append(Launch(kernel.__name__, grid, ptx, arguments, memory))

    def _argument(self, kernel: str, name: str, value: torch.Tensor | int) -> Tensor | int:
        """A number; or memory, and what of it was ever written: all that no kernel was to write."""
        if isinstance(value, int):
            return value
        self.kept.append(value)
        contents, result, loose = _bytes(value), name in RESULTS[kernel], (kernel, name) in LOOSE
        if result and value.data_ptr() not in self.defined:
            self.defined[value.data_ptr()] = np.zeros(len(contents), np.bool_)
            contents[:] = 0xFF
        defined = self.defined.get(value.data_ptr(), np.ones(len(contents), np.bool_))
        return Tensor(name, contents, defined, result, loose)


def execute(ptx: str, arguments: Sequence[Tensor | int], grid: tuple[int, ...], shared_bytes: int) -> Global:
    """Run every block of a grid, one after the other.

    Args:
        ptx: one kernel.
        arguments: arguments of the kernel, in order.
        grid: blocks in x, and in y and z where there are more.
        shared_bytes: shared memory of a block.

    Returns:
        Global memory; tensors have what was written.

    Raises:
        Fault: the kernel does what it must not, or what is not known here.
    """
    program, steps = _decoded(ptx)
    memory = Global([value for value in arguments if isinstance(value, Tensor)])
    starts = iter(range(len(memory.tensors)))
    bits = [memory.address(next(starts)) if isinstance(value, Tensor) else value for value in arguments]
    parameters = dict(zip(program.parameters, bits, strict=True))
    sizes = (*grid, 1, 1)[:3]
    with np.errstate(all="ignore"):
        for z, y, x in product(*map(range, reversed(sizes))):
            run(program, steps, Block(program, memory, shared_bytes, parameters, (x, y, z), sizes))
    memory.collect()
    return memory


@contextmanager
def emulated(architecture: int, edit: Callable[[str, str], str] = lambda _, ptx: ptx) -> Iterator[list[Launch]]:
    """Within it, `fused` runs its kernels here.

    Args:
        architecture: 80, 89, 90, 100 or 120.
        edit: changes the PTX of a kernel, by its name, before it runs.

    Yields:
        The launches so far.
    """
    emulator = Emulator(architecture, edit)
    kernels = {name: _Launcher(kernel, emulator) for name, kernel in vars(fused).items() if _is_kernel(kernel)}
    with mock.patch.multiple(fused, _check=lambda *_: None, _capability=lambda _: architecture, **cast("Any", kernels)):
        yield emulator.launches


def _is_kernel(value: object) -> bool:
    return isinstance(value, triton.JITFunction)


class _Launcher:
    """`kernel[grid](...)`."""

    def __init__(self, kernel: object, emulator: Emulator) -> None:
        self.kernel, self.emulator = kernel, emulator

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *given, **named: self.emulator.launch(self.kernel, grid, *given, **named)


def _bytes(tensor: torch.Tensor) -> Array:
    """The bytes that a tensor spans, uint8, the same memory."""
    count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((count,), (1,)).view(torch.uint8)
    return cast("Array", flat.numpy())


def _key(kernel: Any, arguments: Mapping[str, Any]) -> tuple[tuple[str, str, Any, bool], ...]:  # noqa: ANN401 - Triton's
    """Name, type, constant and whether 16 divides it, of each argument."""
    key: list[tuple[str, str, Any, bool]] = []
    for parameter in kernel.params:
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            even = value.storage_offset() * value.itemsize % 16 == 0
            key.append((parameter.name, f"*{_TYPES[str(value.dtype).removeprefix('torch.')]}", None, even))
        elif parameter.is_constexpr or value is None or value == 1:
            key.append((parameter.name, "constexpr", value, False))
        else:
            key.append((parameter.name, "i32", None, value % 16 == 0))
    return tuple(key)


@cache
def _compile(kernel: Any, key: tuple[Any, ...], architecture: int, options: tuple[Any, ...]) -> Any:  # noqa: ANN401 - Triton's
    source = ASTSource(
        kernel,
        {name: kind for name, kind, _, _ in key},
        {(at,): value for at, (_, kind, value, _) in enumerate(key) if kind == "constexpr"},
        {(at,): [["tt.divisibility", 16]] for at, (_, _, _, even) in enumerate(key) if even},
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(options))


@cache
def _decoded(ptx: str) -> tuple[Program, list[Step]]:
    program = parse(ptx)
    return program, decode(program)
