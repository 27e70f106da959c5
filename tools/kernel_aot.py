"""Compiles the kernels for GPUs that are not here, and reads off the machine code what can be known without running it.

    python tools/kernel_aot.py [--architectures 90 100]        every tile that ships, a line for each

Triton's wheel brings NVIDIA's assembler and disassembler, so no GPU and no CUDA are needed. What decides whether a
memory-bound kernel can be fast at all is how many instructions it spends on a weight: an H100 issues 132 x 4 x 32 lanes
x 1.75 GHz = 29.6e12 a second, and reads 3.35e12 / 0.5625 = 5.96e12 weights of group 32. So 4.97 instructions are all
there is, and 3.5 leave 30 % for waiting. They are counted of the inner loop and of the whole program: with k = 704 a
loop has only 3 steps, and what is before and after it weighs as much as one.

Letters as in `matmul`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from g4convert.forward.triton.fused import constants
from g4convert.forward.triton.matmul import matmul
from g4convert.forward.triton.routing import align, top_k_sum
from g4convert.forward.triton.tiles import ARCHITECTURES, Kind, Tile, shipped_tiles

__all__ = [
    "SHARED_BYTES",
    "Machine",
    "Variant",
    "compile_helpers",
    "compile_variant",
    "compiled",
    "main",
    "variants",
]

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that one program may have, in bytes, by architecture."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SIZES = {"gate_up": (704, 2816), "down": (2816, 704), "linear": (4096, 2816)}  # n and k of 26B-A4B


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of `matmul`.

    Args:
        kind: kind of product.
        tile: cut of the product.
        dtype: dtype of the activations: bf16, fp16 or fp32; scales are bf16.
        group: weights of a scale, 0 for one scale a row.
        k: in_features, 0 for those of 26B-A4B: how many steps there are follows, and whether they are whole.
    """

    kind: Kind
    tile: Tile
    dtype: str = "bf16"
    group: int = 32
    k: int = 0

    @property
    def gated(self) -> bool:
        """True if the weight is gate and up."""
        return self.kind == "gate_up"

    @property
    def in_features(self) -> int:
        """`k`, or that of 26B-A4B."""
        return self.k or _SIZES[self.kind][1]


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts from the machine code of one kernel.

    Args:
        registers: registers of a thread.
        spills: instructions that store registers to memory or load them back, and bytes of stack.
        shared: bytes of a program.
        loop: instructions of the inner loop, by name; empty where there is none.
        wide_copies: asynchronous copies of 16 bytes among them.
        waits: waits for wgmma among them.
        per_weight: instructions of the loop, all threads together, by weights of a step.
        whole: instructions of a program, all threads together, by its weights.
    """

    registers: int
    spills: int
    shared: int
    loop: Counter[str]
    wide_copies: int
    waits: int
    per_weight: float
    whole: float

    @property
    def tensor_cores(self) -> str:
        """The instruction that multiplies: HMMA, HGMMA, UTCHMMA; or empty."""
        return next((name for name in self.loop if "MMA" in name), "")

    @property
    def serialized(self) -> bool:
        """True if the assembler makes every wgmma wait for the one before it, which it may without a word."""
        return 0 < self.loop["HGMMA"] <= self.waits


def variants(architecture: int) -> Iterator[Variant]:
    """Every tile that ships for an architecture, on the shapes of 26B-A4B: bf16, group 32."""
    for kind, tile in shipped_tiles(f"sm_{architecture}"):
        yield Variant(kind, tile)


def compile_variant(variant: Variant, architecture: int) -> Machine:
    """Compile `matmul` and read what its machine code shows.

    Args:
        variant: kernel to compile.
        architecture: 80, 89, 90, 100 or 120.
    """
    tile = variant.tile
    rows = tile.block_n * (2 if variant.gated else 1)
    return _look(compiled(variant, architecture), rows / (32 * tile.num_warps), variant.in_features, tile.block_k)


def compiled(variant: Variant, architecture: int) -> Any:  # noqa: ANN401 - Triton has no types
    """Compile `matmul` as a GPU of an architecture would when it first meets a shape.

    Args:
        variant: kernel to compile.
        architecture: 80, 89, 90, 100 or 120.

    Returns:
        Triton's `CompiledKernel`, with `asm["ptx"]` and `asm["cubin"]`.
    """
    tile, gated = variant.tile, variant.gated
    k = variant.in_features
    routed = variant.kind != "linear"
    types = dict.fromkeys(("x", "out"), f"*{variant.dtype}") | {"words": "*i16", "scale": "*bf16"}
    if routed:
        types |= {"pairs": "*i32", "experts": "*i32"} | ({} if gated else {"share": "*fp32"})
    types |= dict.fromkeys(("n", "kh", "groups", "count", "number"), "i32") | ({"top_k": "i32"} if gated else {})
    fixed = {
        **constants(tile, k=k, groups=k // variant.group if variant.group else 1, gated=gated, capability=architecture),
        "route": "sorted" if routed else "rows",
        "gated": gated,
        "interpreted": False,
        **({} if gated else {"top_k": 1}),
    }
    even = ("x", "words", "scale", "out", "pairs", "experts", "share", "n", "kh")
    return _compile(matmul, types, fixed, even, architecture, tile)


def compile_helpers(architecture: int) -> dict[str, Machine]:
    """Compile `align`, as it is for many pairs, and `top_k_sum` for 26B-A4B."""
    types = {"chosen": "*i64", "pairs": "*i32", "experts": "*i32", "count": "i32", "capacity": "i32"}
    fixed = {"number": 128, "bins": 256, "block_m": 8, "chunk": 4096}
    sorting = _compile(align, types, fixed, ("chosen", "pairs", "experts"), architecture, Tile(8, 16, 64, 8, 3))
    types = {"y": "*bf16", "chosen": "*i64", "out": "*bf16", "n": "i32", "number": "i32"}
    fixed = {"top_k": 8, "block": 1024, "interpreted": False}
    adding = _compile(top_k_sum, types, fixed, ("y", "chosen", "out", "n"), architecture, Tile(8, 16, 64, 4, 3))
    return {"align": _look(sorting), "top_k_sum": _look(adding)}


def _compile(
    kernel: Any,  # noqa: ANN401 - Triton has no types
    types: dict[str, str],
    fixed: dict[str, Any],
    even: Sequence[str],
    architecture: int,
    tile: Tile,
) -> Any:  # noqa: ANN401 - the same
    """Compile one kernel; arguments in neither `types` nor `fixed` are None, those in `even` multiples of 16."""
    names = list(kernel.arg_names)
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): fixed.get(name) for name in names if name not in types},
        {(names.index(name),): [["tt.divisibility", 16]] for name in even if name in types},
    )
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _look(kernel: Any, rows_of_a_thread: float = 1, k: int = 1, block_k: int = 1) -> Machine:  # noqa: ANN401 - the same
    """Take a compiled kernel apart."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, code = (_cuobjdump(option, cubin.name) for option in ("-res-usage", "-sass"))
    lines = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    loop = _inner_loop(lines)
    once = max(i for i, (_, text) in enumerate(lines) if "EXIT" in text) + 1 - len(loop)
    stack = re.search(r"STACK:(\d+)", usage)
    registers = re.search(r"REG:(\d+)", usage)
    return Machine(
        registers=int(registers[1]) if registers else 0,
        spills=sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in lines) + (int(stack[1]) if stack else 0),
        shared=kernel.metadata.shared,
        loop=Counter(re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0] for text in loop),
        wide_copies=sum("LDGSTS" in text and ".128" in text for text in loop),
        waits=sum("WARPGROUP.DEPBAR" in text for text in loop),
        per_weight=len(loop) / (rows_of_a_thread * block_k),
        whole=(once + -(-k // block_k) * len(loop)) / (rows_of_a_thread * k),
    )


def _cuobjdump(option: str, path: str) -> str:
    command = [str(_TOOLS / "cuobjdump"), option, path]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - Triton's own tool
    return ran.stdout + ran.stderr


def _inner_loop(lines: Sequence[tuple[int, str]]) -> list[str]:
    """The longest way back to an earlier instruction with a product between."""
    loop: list[str] = []
    for address, text in lines:
        back = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < address:
            body = [inner for at, inner in lines if int(back[1], 16) <= at <= address]
            if len(body) > len(loop) and any(re.search(r"MMA|FFMA", inner) for inner in body):
                loop = body
    return loop


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each tile that ships."""
    parser = argparse.ArgumentParser(prog="python tools/kernel_aot.py", description="static counts of the kernels")
    parser.add_argument("--architectures", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    out = sys.stdout
    out.write(f"Triton {triton.__version__}\n")
    out.write("| sm | product | tile | loop | whole | registers | spills | shared KB | 16-byte copies | by |\n")
    out.write("|---|---|---|---:|---:|---:|---:|---:|---:|---|\n")
    for architecture in parser.parse_args(arguments).architectures:
        for variant in variants(architecture):
            m, t = compile_variant(variant, architecture), variant.tile
            cut = f"{t.block_m}x{t.block_n}x{t.block_k} w{t.num_warps} s{t.num_stages}"
            out.write(
                f"| {architecture} | {variant.kind} | {cut} | {m.per_weight:.2f} | {m.whole:.2f} | {m.registers} "
                f"| {m.spills} | {m.shared / 1024:.0f} | {m.wide_copies} | {m.tensor_cores} |\n"
            )
            out.flush()


if __name__ == "__main__":
    main()
