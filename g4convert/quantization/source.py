"""Conversion of source words to fp32, the dtype of all arithmetic.

A weight `w` is exact in fp32. The other way round, an fp32 value `v` rounds to `w` when the bits of
`|v| * down` are within `half` of the bits of `|w| * down`; within `half - 1` where the last bit of the word of
`w` is odd, for the tie goes to its even neighbour. Bits of fp32 count evenly from one neighbour to the next, so
this holds at powers of two as well. `down` moves fp16's denormals to where fp32 has its own.
"""

from dataclasses import dataclass

from g4convert.tensors import DType


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """One source dtype.

    Args:
        kind: 0 bf16, 1 fp16, 2 fp32; what the kernels ask for.
        itemsize: bytes of a word.
        limit: fp32 bits of the smallest magnitude that is not finite, as the kernels decode it.
        down: power of two that takes the dtype's denormals to fp32's.
        half: half a unit in the last place, in fp32 bits of a value times `down`; 0 for fp32.
        shift: bits of fp32 below the dtype's last bit; 0 for fp32.
        odd: 1, or 0 for fp32, where there is nothing to round.
    """

    kind: int
    itemsize: int
    limit: int
    down: float
    half: int
    shift: int
    odd: int


_INF = 0x7F800000
_TWO_TO_16 = 0x47800000  # a decoded fp16 word with all exponent bits set is 65536 or more

FORMATS = {
    DType.BF16: SourceFormat(kind=0, itemsize=2, limit=_INF, down=1.0, half=0x8000, shift=16, odd=1),
    DType.F16: SourceFormat(kind=1, itemsize=2, limit=_TWO_TO_16, down=2.0**-112, half=0x1000, shift=13, odd=1),
    DType.F32: SourceFormat(kind=2, itemsize=4, limit=_INF, down=1.0, half=0, shift=0, odd=0),
}
