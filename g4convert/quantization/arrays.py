"""Checks of a tile's arrays, made before a kernel could write out of bounds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I32, U16
from g4convert.quantization.scheme import Scheme
from g4convert.tensors import DType

_AXES = 2


def check_rows(rows: NDArray[Any], dtype: DType) -> None:
    """Raise ValueError unless `rows` is a contiguous [n, k] of the words of `dtype`."""
    expected = np.dtype(np.float32 if dtype is DType.F32 else np.uint16)
    if not dtype.is_weight or rows.dtype != expected or rows.ndim != _AXES or not rows.flags.c_contiguous:
        raise ValueError(f"rows of {dtype} must be contiguous {expected} [n, k], not {rows.dtype} {rows.shape}")


def check_outputs(scheme: Scheme, shape: tuple[int, int], packed: I32, scale: U16) -> None:
    """Raise ValueError unless the outputs for weights of `shape` are contiguous and of the right shape."""
    n, k = shape
    for name, array, expected, columns in (
        ("packed", packed, np.int32, scheme.words(k)),
        ("scale", scale, np.uint16, scheme.groups(k)),
    ):
        if array.dtype != expected or array.shape != (n, columns) or not array.flags.c_contiguous:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} must be contiguous {np.dtype(expected)} {(n, columns)}, not {found}")


def check_squares(squares: F32 | None, k: int) -> F32:
    """Return mean squares of inputs, which `imatrix` needs; raise ValueError unless they are float32 [k]."""
    if squares is None or squares.dtype != np.float32 or squares.shape != (k,):
        raise ValueError(f"imatrix needs float32 {(k,)} of mean squares")
    return squares
