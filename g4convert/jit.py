"""`jit`: compiles a function with numba on its first call, without the interpreter lock, and caches the code on disk.

numba has no type annotations; `jit` keeps the types of the function. numba reuses cached code while the function's own
file is unchanged, but that code includes functions from other files of the package. So the cache is stamped with a hash
of the whole package.
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
    """Return a function that numba compiles on its first call.

    Args:
        function: function in the subset of Python that numba compiles.
        reorder: let the compiler reorder sums and fuse products with sums: fast, but the last bits of results depend on
            the machine.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if reorder:
        options["fastmath"] = {"reassoc", "contract", "nsz"}  # NaN and infinity keep their meaning
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation and no home directory: no place for the cache
        return cast("Callable[_P, _R]", numba.njit(**options)(function))
    kept = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if kept is not None:
        kept._source_stamp = stamp(Path(function.__code__.co_filename).parent)  # noqa: SLF001 - numba has no public way; a test tells if it moves
    return cast("Callable[_P, _R]", compiled)


@cache
def stamp(package: Path) -> str:
    """Return the hash of all source files in a package's directory."""
    return sha256(b"".join(path.read_bytes() for path in sorted(package.glob("*.py")))).hexdigest()
