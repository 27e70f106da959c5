"""`jit`: compiles a function with numba on its first call, without the interpreter lock, and caches the code on disk.

numba has no type annotations; `jit` keeps the types of the function. numba reuses cached code while the function's own
file is unchanged, but that code includes functions from other files. So the cache is stamped with a hash of the file
and of all that it imports of this program. The stamp is in numba's version, too, which is compared before the types
of arguments are unpickled: an older release's may be gone.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

import numba

_ROOT: Final = Path(__file__).parents[1]
_IMPORT: Final = re.compile(r"^from (g4convert[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_NAME: Final = re.compile(r"\w+")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def jit(function: Callable[_P, _R], *, reorder: bool = False, inline: bool = False) -> Callable[_P, _R]:
    """Return a function that numba compiles on its first call.

    Args:
        function: function in the subset of Python that numba compiles.
        reorder: let the compiler reorder sums and fuse products with sums: fast, but the last bits of results depend on
            the machine.
        inline: copy the function into its callers, since a call counts references to all arrays that it passes.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if inline:
        options["inline"] = "always"
    if reorder:
        options["fastmath"] = {"reassoc", "contract", "nsz"}  # NaN and infinity keep their meaning
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only installation and no home directory: no place for the cache
        return cast("Callable[_P, _R]", numba.njit(**options)(function))
    cache_file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        source_hash = hash_sources(Path(function.__code__.co_filename))
        cache_file._source_stamp, cache_file._version = source_hash, f"{numba.__version__} {source_hash}"  # noqa: SLF001 - no public way; a test tells if they move
    return cast("Callable[_P, _R]", compiled)


@cache
def hash_sources(path: Path) -> str:
    """Return the hash of a source file and of the files of this program that it imports, and that these import."""
    texts: dict[Path, str] = {}
    unread = [path]
    while unread:
        if (file := unread.pop()) not in texts:
            texts[file] = file.read_text()
            unread += _list_imported(texts[file])
    return sha256("".join(texts[file] for file in sorted(texts)).encode()).hexdigest()


def _list_imported(text: str) -> Iterator[Path]:
    """Yield the files of the modules that a source file imports from, or imports, of this program."""
    for module, names in _IMPORT.findall(text):
        place = _ROOT.joinpath(*module.split("."))
        places = (place, place / "__init__", *(place / name for name in _NAME.findall(names)))
        yield from (file for path in places if (file := path.with_suffix(".py")).is_file())
