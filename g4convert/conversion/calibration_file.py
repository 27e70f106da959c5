"""The calibration file: token ids, and statistics of the Linears' inputs on them; see docs/concepts/format.md.

    ids                   int32 [samples, length]
    MODULE.mean_square    float32 [k], for the experts of a layer [e, k]; see `statistics`
    MODULE.tokens         int64 [1], or [e]
    pictures.*            pictures of the rows, where there are any; see `pictures`

The format is safetensors. Statistics may be missing: in a file of another program, with `sha256` in the metadata, or if
the model is too large for the pass that records them. Ids and statistics have hashes, and the file names its model.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from g4convert.array_types import I32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.gguf import is_gguf
from g4convert.conversion.identity import Model
from g4convert.conversion.pictures import Pictures
from g4convert.conversion.statistics import MEAN_SQUARE, TOKENS, InputStatistics, Statistics, hash_of
from g4convert.errors import InputError
from g4convert.whole_files import write_whole

_VERSION: Final = "1"
_WITH_PICTURES: Final = "2"
"""Version of a file with pictures, which earlier programs refuse by this number."""
_IDS: Final = "ids"
_LENGTH: Final = 8
"""Bytes of the header's length; the header is padded to a multiple of it."""
_HINT: Final = "`g4convert calibrate MODEL -o FILE` makes one"


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """Content of a calibration file.

    Args:
        ids: int32 [samples, length].
        tokenizer: hash of the tokenizer.json that made the ids; empty if unknown.
        model: the model that the file was made for; None if unknown.
        statistics: input statistics; None if the file has token ids alone.
        texts: description of the texts behind the ids, as JSON; None if unknown.
        request: hash of everything that the ids depend on, `identity.hash_of_request`; empty if unknown.
        pictures: pictures of the rows; None if they have none.
    """

    ids: I32
    tokenizer: str = ""
    model: Model | None = None
    statistics: Statistics | None = None
    texts: Mapping[str, Any] | None = None
    request: str = ""
    pictures: Pictures | None = None

    @classmethod
    def load(cls, path: Path) -> "CalibrationFile":
        """Read a file.

        Raises:
            InputError: not a calibration file, damaged, of a later version, or with fewer than two samples.
        """
        if is_gguf(path):
            text = f"{path}: an importance matrix, which has no token ids to calibrate on"
            raise InputError(text, hint="-r w4a16-g32-imatrix uses it")
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a calibration file: {error}", hint=_HINT) from error
        if metadata.get("version", _VERSION) not in {_VERSION, _WITH_PICTURES}:
            text = f"version {metadata['version']} of a calibration file, expected {_VERSION} or {_WITH_PICTURES}"
            raise InputError(f"{path}: {text}", hint=_HINT)
        ids = _check_ids(path, arrays.pop(_IDS, None))
        try:
            pictures = Pictures.taken_from(arrays)
        except ValueError as error:
            raise InputError(f"{path}: a calibration file of another form: {error}", hint=_HINT) from error
        if metadata.get("sha256") != hash_of_tokens(ids, pictures):
            content_name = "ids" if pictures is None else "ids and pictures"
            raise InputError(f"{path}: its {content_name} do not have the hash it states: damaged", hint=_HINT)
        if pictures is not None and pictures.rows[-1, 0] >= len(ids):
            raise InputError(f"{path}: pictures of row {pictures.rows[-1, 0]}, and {len(ids)} rows", hint=_HINT)
        if metadata.get("statistics", "") != (hash_of(arrays) if arrays else ""):
            raise InputError(f"{path}: its statistics do not have the hash it states: damaged", hint=_HINT)
        try:
            model = Model.from_json(metadata["model"]) if "model" in metadata else None
            texts = json.loads(metadata["texts"]) if "texts" in metadata else None
            inputs = dict(_pair_inputs(arrays))
            texts = texts if isinstance(texts, dict) else None
            content = cls(ids, metadata.get("tokenizer", ""), model, None, texts, metadata.get("request", ""), pictures)
            kinds = content.kinds
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: a calibration file of another form: {error}", hint=_HINT) from error
        if not inputs:
            return content
        statistics = Statistics(inputs, model, "g4convert", content.hash, len(ids), ids.shape[1], kinds)
        return replace(content, statistics=statistics)

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Write a file atomically: a kill leaves either the old file or the new one.

        Args:
            path: the file.
            overwrite: replace a file that is there.

        Raises:
            UsageError: a file is there that may not be replaced.
        """
        arrays = {} if self.statistics is None else self.statistics.arrays()
        pictures = {} if self.pictures is None else self.pictures.arrays()
        facts = {
            "version": _WITH_PICTURES if pictures else _VERSION,
            "sha256": self.hash,
            "tokenizer": self.tokenizer,
            "model": "" if self.model is None else self.model.to_json(),
            "statistics": hash_of(arrays) if arrays else "",
            "texts": "" if self.texts is None else json.dumps(dict(self.texts), sort_keys=True),
            "request": self.request,
        }
        stored = save(
            {_IDS: self.ids, **pictures, **arrays}, metadata={key: value for key, value in facts.items() if value}
        )
        # the user's ordinary file mode; save_file would let only the owner read it
        write_whole(path, _sort_metadata(stored), overwrite=overwrite)

    @property
    def kinds(self) -> dict[str, int]:
        """Number of ids by kind of text; empty if unknown."""
        kinds = (self.texts or {}).get("kinds")
        return {str(kind): int(count) for kind, count in kinds.items()} if isinstance(kinds, dict) else {}

    @property
    def hash(self) -> str:
        """The SHA-256 of the ids and pictures."""
        return hash_of_tokens(self.ids, self.pictures)


def check_model(path: Path, model: Model | None, checkpoint: Checkpoint) -> None:
    """Check that a calibration file was made for the model of `checkpoint`.

    Raises:
        InputError: it was made for another model; names every difference.
    """
    wrong = [] if model is None else [*model.differences(Model.of(checkpoint))]
    if wrong:
        raise InputError(f"{path}: a calibration of another model than {checkpoint.path}", offenders=wrong, hint=_HINT)


def hash_of_tokens(ids: I32, pictures: Pictures | None) -> str:
    """Return the sha256 of token ids as little-endian int32, row after row, and of the hash of pictures."""
    digest = sha256(ids.astype("<i4").tobytes())
    if pictures is not None:
        digest.update(pictures.hash.encode())
    return digest.hexdigest()


def _sort_metadata(stored: bytes) -> bytes:
    """Return a safetensors file with its metadata in the order of the keys; the library's order varies."""
    end = _LENGTH + int.from_bytes(stored[:_LENGTH], "little")
    header = json.loads(stored[_LENGTH:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = ordered + b" " * (-len(ordered) % _LENGTH)
    return len(padded).to_bytes(_LENGTH, "little") + padded + stored[end:]


def _check_ids(path: Path, ids: NDArray[Any] | None) -> I32:
    """Return token ids, checked for dtype and shape."""
    if ids is None:
        raise InputError(f"{path}: not a calibration file: it has no token ids", hint=_HINT)
    if ids.dtype != np.int32 or ids.ndim != 2 or len(ids) < 2 or ids.shape[1] < 1:
        found = f"{ids.dtype} {[*ids.shape]}"
        text = f"{path}: ids are {found}, expected int32 [samples, length], two samples or more"
        raise InputError(text, hint=_HINT)
    return np.ascontiguousarray(ids)


def _pair_inputs(arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, InputStatistics]]:
    """Yield the input statistics by module, each made of two tensors.

    Raises:
        ValueError: a tensor of another dtype or shape, alone, or with a number that cannot be.
    """
    for module in sorted({name.removesuffix(MEAN_SQUARE).removesuffix(TOKENS) for name in arrays}):
        squares, tokens = arrays.get(module + MEAN_SQUARE), arrays.get(module + TOKENS)
        if squares is None or tokens is None or squares.dtype != np.float32 or tokens.dtype != np.int64:
            raise ValueError(module)
        if tokens.shape != (squares.shape[:-1] or (1,)) or not squares.size or tokens.min() < 0:
            raise ValueError(module)
        if not np.isfinite(squares).all() or squares.min() < 0:
            raise ValueError(module)
        yield module, InputStatistics(squares, tokens)
