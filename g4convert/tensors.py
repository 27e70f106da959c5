"""Name, dtype and shape of a tensor, which are known before its bytes are read.

No torch here: dtypes have the names of the safetensors header.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import prod


class DType(StrEnum):
    """A safetensors dtype, spelled as in the file header."""

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    I64 = "I64"
    U64 = "U64"
    F64 = "F64"

    @property
    def exponent(self) -> int:
        """Mask of the bits of the exponent, all of which are set in NaN and infinite values; 0 for other numbers."""
        return {DType.BF16: 0x7F80, DType.F16: 0x7C00, DType.F32: 0x7F800000}.get(self, 0)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _ITEMSIZE[self]

    @property
    def is_weight(self) -> bool:
        """True if g4convert can quantize from this dtype: bf16, fp16 or fp32."""
        return self in {DType.BF16, DType.F16, DType.F32}


_ITEMSIZE = {
    **dict.fromkeys((DType.BOOL, DType.U8, DType.I8, DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0), 1),
    **dict.fromkeys((DType.I16, DType.U16, DType.F16, DType.BF16), 2),
    **dict.fromkeys((DType.I32, DType.U32, DType.F32), 4),
    **dict.fromkeys((DType.I64, DType.U64, DType.F64), 8),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, dtype and shape; `()` is a scalar."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * _ITEMSIZE[self.dtype]
