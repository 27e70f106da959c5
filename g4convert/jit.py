"""`jit`: a function compiled by numba on its first call, free of the interpreter lock, its machine code kept on disk.

numba ships no types; this keeps those a function is written with. And numba keeps machine code as long as the
function's own file is unchanged; it also holds what the function calls in the files beside, so the stamp is of the
whole package the function is in.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba

__all__ = ["jit", "stamp"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def jit(function: Callable[_P, _R], *, reorder: bool = False) -> Callable[_P, _R]:
    """Compile on the first call.

    Args:
        function: in the part of Python that numba compiles.
        reorder: let the compiler change the order of sums and fuse a product with its sum: fast, but the last bits
            are those of one machine.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if reorder:
        options["fastmath"] = {"reassoc", "contract", "nsz"}  # numbers that are none stay what they are
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation and no home directory: nowhere to keep it
        return cast("Callable[_P, _R]", numba.njit(**options)(function))
    kept = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if kept is not None:
        kept._source_stamp = stamp(Path(function.__code__.co_filename).parent)  # noqa: SLF001 - numba has no public way; a test tells if it moves
    return cast("Callable[_P, _R]", compiled)


@cache
def stamp(package: Path) -> str:
    """The hash of every source file of a package."""
    return sha256(b"".join(path.read_bytes() for path in sorted(package.glob("*.py")))).hexdigest()
