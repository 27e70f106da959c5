"""Reads the header of one safetensors file and trusts nothing in it.

A safetensors file is

    [ n: u64, little-endian ][ header: n bytes of JSON, UTF-8 ][ data: the rest of the file ]

    {"__metadata__": {str: str}, NAME: {"dtype": str, "shape": [int], "data_offsets": [begin, end]}}

with offsets counted from the first data byte. Ways to fail, each checked here: the file is missing, no
regular file, unreadable, or of another format (a Git LFS pointer, GGUF, a pickle); the length runs
past the file or over 100 MB; the JSON is not UTF-8, not JSON, has a key twice, or is no object; an entry
has an unknown dtype, a size that is no natural number, offsets out of order or not dtype x shape bytes
long; two tensors overlap; bytes belong to no tensor; the file is cut short or has bytes to spare.

The safetensors library is laxer in one point: of a name given twice it keeps one, silently. Here that is
an error. Like the library, an entry's further keys are ignored.

Only the header is read, in one `pread`; no tensor byte is.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.files import escape_unprintable, open_regular, parse_object
from g4convert.checkpoint.naming import naming
from g4convert.errors import FormatError, UnsupportedError
from g4convert.tensors import DType, TensorInfo

MAX_HEADER: Final = 100_000_000
"""Largest header in bytes; the limit of the safetensors library."""

_INT_LIMIT: Final = 1 << 63
_LENGTH_SIZE: Final = 8  # of the header's length
_SHORT: Final = 60  # characters of a wrong value in a message
_PAIR: Final = 2  # begin and end
_DTYPES: Final = {dtype.value: dtype for dtype in DType}
_KEYS: Final = ("dtype", "shape", "data_offsets")
_DOWNLOAD_AGAIN: Final = "download or save this file again; it is damaged"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored tensor and its place: `file` is relative to the directory, `begin` an absolute offset in the file."""

    info: TensorInfo
    file: str
    begin: int

    @property
    def name(self) -> str:
        """The stored name."""
        return self.info.name

    @property
    def end(self) -> int:
        """Offset in the file just after the last byte."""
        return self.begin + self.info.nbytes


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Identity of a weight file without reading its data: used to refuse a changed source."""

    name: str
    size: int
    mtime_ns: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class Header:
    """A valid header: the file's identity and its tensors in file order."""

    file: WeightFile
    tensors: tuple[StoredTensor, ...]


def read_header(directory: Path, file: str) -> Header:
    """Read and check the header of `directory / file`.

    Args:
        directory: the checkpoint's directory.
        file: the file's name relative to it; also what messages call the file.

    Raises:
        InputError: the file is missing, unreadable or no regular file.
        FormatError: the file breaks the format; every broken entry is an offender.
        UnsupportedError: the file is of another format.
        EnvironmentFault: the device cannot read it.
    """
    fd = open_regular(directory / file, file)
    try:
        status = os.fstat(fd)
        with naming(file):
            raw = _header_bytes(fd, file, status.st_size)
    finally:
        os.close(fd)
    table = parse_object(raw, f"{file}: header", _DOWNLOAD_AGAIN)
    identity = WeightFile(file, status.st_size, status.st_mtime_ns, hashlib.sha256(raw).hexdigest())
    data_begin = _LENGTH_SIZE + len(raw)
    return Header(identity, _tensors(table, file, data_begin, status.st_size - data_begin))


def _header_bytes(fd: int, file: str, size: int) -> bytes:
    """Return the header's bytes, after checking its length."""
    start = os.pread(fd, 32, 0)
    _refuse_other_formats(start, file)
    if len(start) < _LENGTH_SIZE:
        found = "empty" if not start else f"{len(start)} bytes, too short for a header"
        raise FormatError(f"{file}: {found}", hint=_DOWNLOAD_AGAIN)
    (length,) = struct.unpack_from("<Q", start)
    if length > size - _LENGTH_SIZE:
        raise FormatError(
            f"{file}: header of {length} bytes is longer than the file ({size} bytes)", hint=_DOWNLOAD_AGAIN
        )
    if length > MAX_HEADER:
        raise FormatError(f"{file}: header of {length} bytes is over the limit of {MAX_HEADER}", hint=_DOWNLOAD_AGAIN)
    raw = os.pread(fd, length, _LENGTH_SIZE)
    if len(raw) != length:
        raise FormatError(f"{file}: {len(raw)} of {length} header bytes could be read", hint=_DOWNLOAD_AGAIN)
    return raw


def _refuse_other_formats(start: bytes, file: str) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise FormatError(f"{file}: a Git LFS pointer, not the weights", hint="run `git lfs pull` there")
    for magic, kind in ((b"GGUF", "GGUF"), (b"PK\x03\x04", "a zip archive (a PyTorch pickle?)")):
        if start.startswith(magic):
            raise UnsupportedError(
                f"{file}: {kind}, expected safetensors",
                hint="pass the original safetensors checkpoint",
            )


def _tensors(table: Mapping[str, Any], file: str, data_begin: int, data_size: int) -> tuple[StoredTensor, ...]:
    """Return every entry as a `StoredTensor`, in file order; raise one error with every fault of the header."""
    faults: list[str] = []
    extents: list[tuple[int, int, str]] = []
    for name, entry in table.items():
        if name == "__metadata__":
            fault = _metadata_fault(entry)
        else:
            fault = _entry_fault(name, entry)
            if fault is None:
                extents.append((*entry["data_offsets"], name))
        if fault:
            faults.append(f"{escape_unprintable(name)}: {fault}")
    extents.sort()
    if not faults:  # with an entry missing, every gap would be reported twice
        faults.extend(_extent_faults(extents, data_size))
    if faults:
        raise _faults_error(file, faults)
    return tuple(StoredTensor(_info(name, table[name]), file, data_begin + begin) for begin, _, name in extents)


def _info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(name, _DTYPES[entry["dtype"]], tuple(entry["shape"]))


def _faults_error(file: str, faults: list[str]) -> FormatError:
    if len(faults) == 1:
        return FormatError(f"{file}: {faults[0]}", hint=_DOWNLOAD_AGAIN)
    message = f"{file}: {len(faults)} faults in its header"
    return FormatError(message, offenders=[f"{file}: {fault}" for fault in faults], hint=_DOWNLOAD_AGAIN)


def _metadata_fault(entry: object) -> str | None:
    if isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values()):
        return None
    return "expected an object of strings"


def _entry_fault(name: str, entry: object) -> str | None:
    """Return the fault of one entry by itself, or None."""
    if not isinstance(entry, dict):
        return f"a JSON {type(entry).__name__}, expected an object"
    if not name.isascii() and not _is_unicode(name):
        return "a name that is not Unicode text"
    return _field_fault(entry) or _size_fault(entry)


def _field_fault(entry: Mapping[str, Any]) -> str | None:
    """Return the fault of a missing or ill-typed field, or None."""
    if absent := [key for key in _KEYS if key not in entry]:
        return f"no {' and no '.join(absent)}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in _DTYPES):
        return f"unknown dtype {_shorten(dtype)}, expected one of {', '.join(_DTYPES)}"
    if not (isinstance(shape, list) and _are_natural(shape)):
        return f"shape {_shorten(shape)}, expected a list of natural numbers"
    if not (isinstance(offsets, list) and len(offsets) == _PAIR and _are_natural(offsets)):
        return f"data_offsets {_shorten(offsets)}, expected two natural numbers"
    return None


def _size_fault(entry: Mapping[str, Any]) -> str | None:
    """Return the fault of offsets that do not fit dtype and shape, or None."""
    begin, end = entry["data_offsets"]
    if begin > end:
        return f"begins at {begin}, after its end {end}"
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    expected = prod(shape) * dtype.itemsize
    if end - begin == expected:
        return None
    expected_text = str(expected) if expected < _INT_LIMIT else "more than 2**63"
    return f"{dtype} {_shorten(shape)} takes {expected_text} bytes, its offsets span {end - begin}"


def _extent_faults(extents: list[tuple[int, int, str]], data_size: int) -> list[str]:
    """Return the faults between tensors: the sorted extents must tile `[0, data_size)`.

    Sorting by begin and end puts empty tensors before the tensor that begins at the same offset.
    """
    faults: list[str] = []
    filled, before = 0, ""
    for begin, end, name in extents:
        if begin < filled:
            shown, other = escape_unprintable(name), escape_unprintable(before)
            faults.append(f"{shown}: begins at {begin}, overlapping {other} up to {filled}")
        elif begin > filled:
            faults.append(f"{escape_unprintable(name)}: {begin - filled} bytes before it belong to no tensor")
        if end >= filled:
            filled, before = end, name
    if filled > data_size:
        cut = sum(end > data_size for _, end, _ in extents)
        tensors = f"{cut} tensor{'s' * (cut != 1)}"
        faults.append(f"truncated: {data_size} bytes of data, the header describes {filled} ({tensors} cut)")
    elif filled < data_size:
        faults.append(f"{data_size - filled} bytes after the last tensor belong to no tensor")
    return faults


def _are_natural(values: list[Any]) -> bool:
    # set(map(type)) and not isinstance: True is no size; and no Python loop, this runs for every tensor twice
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) < _INT_LIMIT)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, from an escape in the JSON
        return False
    return True


def _shorten(value: object) -> str:
    """Return a JSON value for a message, cut if long."""
    text = escape_unprintable(json.dumps(value))
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
