"""The inline assembly that makes weights of nibbles, step by step, on every halfword there is.

No GPU runs it here, and Triton's interpreter does not know it. So its few instructions are carried out by numpy, as
the PTX manual defines them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

tl: Any = pytest.importorskip("triton.language")

FORMS = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}
PAIRS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def fused(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Give a * b + c of pairs of 16-bit floats, rounded once: exact in float64 for these widths."""
    dtype = FORMS[form]
    x, y, z = (torch.from_numpy(np.ascontiguousarray(v)).view(dtype).double() for v in (a, b, c))
    return (x * y + z).to(dtype).view(torch.int32).numpy().view(np.uint32)


def run(code: str, inputs: list[np.ndarray]) -> np.ndarray:
    """Run a PTX block and return its $0, lane by lane."""
    lanes = len(inputs[0])
    registers = {f"${i + 1}": value for i, value in enumerate(inputs)}

    def value(name: str) -> np.ndarray:
        return np.full(lanes, int(name, 0), np.uint32) if name[0].isdigit() else registers[name]

    for line in code.strip("{} ").split(";"):
        operation, _, rest = line.strip().partition(" ")
        names = [name.strip() for name in rest.split(",")]
        match operation.split("."):
            case [""] | ["", "reg", *_]:
                continue
            case ["mov", "b32"]:
                registers[names[0]] = value(names[1])
            case ["shr", "b32"]:
                registers[names[0]] = value(names[1]) >> value(names[2])
            case ["lop3", "b32"]:
                table = int(names[4], 0)
                a, b, c = (value(name) for name in names[1:4])
                out = np.zeros(lanes, np.uint32)
                for bit in range(8):
                    if table >> bit & 1:
                        out |= (a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c)
                registers[names[0]] = out
            case ["fma", "rn", form]:
                registers[names[0]] = fused(form, *(value(name) for name in names[1:4]))
            case _:
                pytest.fail(f"{line}: not an instruction that this test knows")
    return registers["$0"]


@pytest.mark.parametrize("dtype", FORMS.values(), ids=str)
@pytest.mark.parametrize("i", range(4))
def test_every_nibble_becomes_its_code_times_the_scale(dtype: torch.dtype, i: int) -> None:
    from g4convert.forward.triton.matmul import assembly  # noqa: PLC0415 - needs Triton

    low = np.arange(1 << 16, dtype=np.uint32)
    high = low[::-1]
    generator = np.random.default_rng()
    scale = torch.from_numpy(generator.normal(size=(1 << 16, 2)) * 0.02).to(dtype)
    code = assembly(getattr(tl, PAIRS[dtype]), i, scaled=True)
    found = run(code, [low | high << 16, scale.view(torch.int32).flatten().numpy().view(np.uint32)])
    codes = np.stack((low >> 4 * i & 15, high >> 4 * i & 15), -1).astype(np.int64) - 8
    wanted = (torch.from_numpy(codes).double() * scale.double()).to(dtype)
    assert torch.equal(torch.from_numpy(found.view(np.int32)).view(dtype).view(-1, 2), wanted)
    bare = run(assembly(getattr(tl, PAIRS[dtype]), i, scaled=False), [low | high << 16])
    assert torch.equal(torch.from_numpy(bare.view(np.int32)).view(dtype).view(-1, 2), torch.from_numpy(codes).to(dtype))


def test_a_wrong_table_is_seen() -> None:
    """The check above fails for another truth table: that of a & b & c."""
    from g4convert.forward.triton.matmul import assembly  # noqa: PLC0415 - needs Triton

    halfwords = np.arange(1 << 16, dtype=np.uint32)
    right = assembly(tl.bfloat16, 0, scaled=False)
    assert not np.array_equal(run(right, [halfwords]), run(right.replace("0xEA", "0x80"), [halfwords]))
