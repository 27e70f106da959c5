"""Reads a GGUF file of float32 tensors, such as an importance matrix of llama.cpp, and trusts nothing in it.

    "GGUF" | version: u32 | tensors: u64 | values: u64 | values ... | tensors ... | padding | data

    value    key: string | kind: u32 | a number, a string, or an array: kind: u32, count: u64, elements
    tensor   name: string | dimensions: u32 | each: u64, the innermost first | type: u32 | offset in data: u64
    string   bytes: u64 | UTF-8

All little-endian; versions 2 and 3 are alike. Data begins at the next multiple of `general.alignment`, 32 without it.
Weights in GGUF are not read: a type other than float32 is refused.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from g4convert.array_types import F32
from g4convert.bounded import read_bytes
from g4convert.checkpoint.files import open_regular
from g4convert.errors import FormatError, InputError, UnsupportedError

Value: TypeAlias = int | float | bool | str | tuple["Value", ...]

_MAGIC: Final = b"GGUF"
_MAX_FILE_BYTES: Final = 1 << 30
"""Largest size of a file in bytes; the importance matrix of 128 experts in 30 layers takes a tenth of it."""
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct` format of each kind of value."""
_STRING: Final = 8
_ARRAY: Final = 9
_LEAST: Final = {**{kind: struct.calcsize(form) for kind, form in _NUMBERS.items()}, _STRING: 8}
"""Least bytes of an array's element, by kind."""
_FLOAT32: Final = 0
_DIMENSIONS: Final = 4
_VALUE: Final = 8 + 4 + 1
_TENSOR: Final = 8 + 4 + 8 + 4 + 8
"""Least bytes of a tensor's entry."""
_HINT: Final = "copy the file again, or make it again with `llama-imatrix --output-format gguf`"


@dataclass(frozen=True, slots=True)
class Gguf:
    """Content of a GGUF file.

    Args:
        values: metadata by key.
        tensors: tensors by name, with the innermost dimension last.
    """

    values: Mapping[str, Value]
    tensors: Mapping[str, F32]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins with GGUF's magic bytes; False if there is none.

    Raises:
        InputError: it is no regular file (a pipe would wait for ever), or not readable.
    """
    if not path.exists():
        return False
    with os.fdopen(open_regular(path, str(path)), "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_gguf(path: Path) -> Gguf:
    """Read a GGUF file.

    Raises:
        InputError: it cannot be read, or is larger than 1 GiB.
        FormatError: it is cut short, or holds an impossible number.
        UnsupportedError: big-endian, another version, or tensors of another type.
    """
    try:
        data = read_bytes(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint=_HINT) from error
    try:
        return _parse(_Cursor(data))
    except _BrokenError as error:
        raise FormatError(f"{path}: not a sound GGUF file: {error}", hint=_HINT) from error
    except _OtherError as error:
        raise UnsupportedError(f"{path}: {error}", hint="an importance matrix of llama.cpp is expected") from error


class _BrokenError(ValueError):
    """Raised when a file breaks the format; says how."""


class _OtherError(ValueError):
    """Raised when a file is valid GGUF of an unsupported kind; says which."""


class _Cursor:
    """A reading position in the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        """Return the next number; `form` is its `struct` format."""
        value: int = struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]
        return value

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if count > len(self.data) - self.at:
            raise _BrokenError(f"{count:,} bytes at {self.at:,} run past its end at {len(self.data):,}")
        self.at += count
        return self.data[self.at - count : self.at]

    def string(self) -> str:
        """Return the next string."""
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise _BrokenError(f"a name before {self.at:,} is not UTF-8") from error

    def count(self, least: int) -> int:
        """Return the next number of entries, checked against the bytes left at `least` bytes per entry."""
        count = self.number("Q")
        if count * least > len(self.data) - self.at:
            raise _BrokenError(f"{count:,} entries at {self.at:,} do not fit in what is left")
        return count

    def value(self, kind: int) -> Value:
        """Return the next value, of the given kind."""
        if kind == _STRING:
            return self.string()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise _BrokenError(f"kind {kind} of a value at {self.at:,}")
        item_type = self.number("I")
        if item_type not in _LEAST:  # also an array of arrays, which nothing writes
            raise _BrokenError(f"an array of kind {item_type} at {self.at:,}")
        return tuple(self.value(item_type) for _ in range(self.count(_LEAST[item_type])))


def _parse(cursor: _Cursor) -> Gguf:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise _OtherError("not a GGUF file")
    version = cursor.number("I")
    if version not in {2, 3}:
        big = version & 0xFFFF == 0
        raise _OtherError("a big-endian GGUF file" if big else f"version {version} of GGUF, expected 2 or 3")
    tensors = cursor.count(_TENSOR)
    values: dict[str, Value] = {}
    for _ in range(cursor.count(_VALUE)):
        key = cursor.string()
        if key in values:
            raise _BrokenError(f"{key} is there twice")
        values[key] = cursor.value(cursor.number("I"))
    places = dict(_read_place(cursor) for _ in range(tensors))
    if len(places) != tensors:
        raise _BrokenError("a tensor is there twice")
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= len(cursor.data):
        raise _BrokenError(f"general.alignment {alignment!r}")
    begin = -(-cursor.at // alignment) * alignment
    return Gguf(values, {name: _read_array(cursor.data, begin, name, *place) for name, place in places.items()})


def _read_place(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int]]:
    """Return the next tensor's name, shape and offset."""
    name, dimensions = cursor.string(), cursor.number("I")
    if not 0 < dimensions <= _DIMENSIONS:
        raise _BrokenError(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    kind = cursor.number("I")
    if kind != _FLOAT32:
        raise _OtherError(f"{name} is of type {kind}, not float32: weights, not an importance matrix")
    return name, (shape[::-1], cursor.number("Q"))


def _read_array(data: bytes, begin: int, name: str, shape: tuple[int, ...], offset: int) -> F32:
    count = prod(shape)
    if not count or begin + offset + 4 * count > len(data):
        found = f"{[*shape]} at {begin + offset:,}"
        raise _BrokenError(f"{name}: {found} is not in its {len(data):,} bytes: cut short")
    return np.frombuffer(data, "<f4", count, begin + offset).reshape(shape)
