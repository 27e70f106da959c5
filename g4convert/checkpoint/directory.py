"""Opens a checkpoint directory: which files are weights, what they hold, what else lies there.

    config.json                        read here, ours to rewrite
    model.safetensors.index.json       names the shards; else model.safetensors; else every *.safetensors
    *.safetensors                      weights when named so, else stray
    everything else, recursively       carried over or left behind; see `beside`

Index and shards must agree in both directions: every name in the index is in its shard, every tensor of a
shard is in the index, no tensor is in two shards. A name in the index may not leave the directory, but the
file itself may be a link to anywhere: that is how the Hugging Face cache stores a snapshot. All faults are
gathered and raised as one error.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from g4convert.bounded import MOST_CONFIG
from g4convert.checkpoint.beside import PICKLE_SUFFIXES, Beside
from g4convert.checkpoint.header import (
    Header,
    StoredTensor,
    WeightFile,
    open_regular,
    parse_object,
    read_header,
    shown,
)
from g4convert.checkpoint.layouts import copies, without_weights
from g4convert.checkpoint.leftovers import is_adapter
from g4convert.checkpoint.naming import naming
from g4convert.errors import FormatError, InputError, UnsupportedError
from g4convert.tensors import TensorInfo

__all__ = ["Checkpoint", "StoredTensor", "WeightFile"]

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"

_SHARD: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_NO_GGUF: Final = "GGUF is already quantized: pass the original safetensors checkpoint"
_SAVE_AGAIN: Final = "download the model again, or save it again with `save_pretrained`"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: headers read and checked, no tensor byte read.

    Args:
        path: the directory.
        config: config.json as parsed.
        config_bytes: config.json as stored.
        tensors: every stored tensor by name, sorted by name.
        files: the weight files, sorted by name.
        beside: all other files of the directory.
    """

    path: Path
    config: Mapping[str, Any]
    config_bytes: bytes
    tensors: Mapping[str, StoredTensor]
    files: tuple[WeightFile, ...]
    beside: Beside

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Checkpoint":
        """Opens a directory.

        Raises:
            InputError: no directory, nothing usable in it, or index and shards disagree.
            FormatError: a file breaks its format.
            UnsupportedError: the weights are of another format.
        """
        directory = Path(path)
        _check_directory(directory)
        weight_map = _read_index(directory)
        names = _weight_names(directory, weight_map)
        errors: list[InputError] = []
        config_bytes, config = b"", dict[str, Any]()
        try:
            config_bytes, config = _read_config(directory)
        except InputError as error:
            errors.append(error)
        headers = _read_headers(directory, names, errors)
        errors.extend(_disagreements(directory, headers, weight_map))
        if errors:
            raise _joined(directory, errors)
        tensors = {stored.name: stored for header in headers for stored in header.tensors}
        return cls(
            path=directory,
            config=config,
            config_bytes=config_bytes,
            tensors=dict(sorted(tensors.items())),
            files=tuple(header.file for header in headers),
            beside=Beside.of(directory, {*names, CONFIG, INDEX}),
        )

    def choosing(self, *, carry: Sequence[str], leave: Sequence[str]) -> "Checkpoint":
        """The same checkpoint, with the files beside the weights that are carried over, all of which are there.

        Args:
            carry: see `Beside.of`.
            leave: the same.

        Raises:
            InputError: see `Beside.of` and `Beside.check`.
        """
        beside = self.beside
        if carry or leave:
            beside = Beside.of(self.path, {*self.weight_files, CONFIG, INDEX}, carry=carry, leave=leave)
        beside.check(self.path)
        return replace(self, beside=beside)

    @property
    def side_files(self) -> tuple[str, ...]:
        """Files that are carried over: relative posix paths, sorted."""
        return self.beside.side

    @property
    def stray_files(self) -> tuple[str, ...]:
        """Weights that are not read, what training and adapters leave: not carried over."""
        return self.beside.stray

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the weight files, relative to the directory."""
        return tuple(file.name for file in self.files)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Name, dtype and shape of every stored tensor, by name."""
        return {name: stored.info for name, stored in self.tensors.items()}

    def read(self, name: str) -> bytes:
        """The bytes of one tensor, at once: for small tensors.

        Raises:
            KeyError: no tensor has this name.
            FormatError: the file was cut since it was opened.
        """
        stored = self.tensors[name]
        fd = open_regular(self.path / stored.file, stored.file)
        try:
            with naming(stored.file):
                found = os.pread(fd, stored.info.nbytes, stored.begin)
        finally:
            os.close(fd)
        if len(found) != stored.info.nbytes:
            raise FormatError(
                f"{stored.file}: {name}: read {len(found)} bytes, expected {stored.info.nbytes}",
                hint="the file changed while it was in use: start again",
            )
        return found

    def fingerprint(self) -> dict[str, dict[str, int | str]]:
        """Return what must not change between a run and its continuation, by file name.

        Size, modification time and header hash for each weight file, size and hash for config.json: plain
        JSON values, so that two fingerprints can be stored, compared and their difference shown.
        """
        facts: dict[str, dict[str, int | str]] = {
            CONFIG: {"size": len(self.config_bytes), "sha256": hashlib.sha256(self.config_bytes).hexdigest()}
        }
        for file in self.files:
            facts[file.name] = {
                "size": file.size,
                "mtime_ns": file.mtime_ns,
                "header_sha256": file.header_sha256,
            }
        return facts

    def digest(self) -> str:
        """A sha256 over the fingerprint without times: equal for copies of the same checkpoint."""
        timeless = {
            name: {key: value for key, value in values.items() if key != "mtime_ns"}
            for name, values in self.fingerprint().items()
        }
        return hashlib.sha256(json.dumps(timeless, sort_keys=True).encode()).hexdigest()


def _check_directory(path: Path) -> None:
    if path.is_file():
        if path.suffix == ".gguf":
            raise UnsupportedError(f"{path}: a GGUF file, expected a safetensors directory", hint=_NO_GGUF)
        raise InputError(f"{path}: a file, expected a checkpoint directory", hint=f"pass {path.parent}")
    if not path.is_dir():
        raise InputError(f"{path}: no such directory", hint="pass the directory that holds config.json")
    try:
        empty = next(path.iterdir(), None) is None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be listed: {(error.strerror or '').lower()}",
            hint="check its permissions",
        ) from error
    if empty:
        raise InputError(f"{path}: an empty directory", hint="download the model into it first")


def _read_file(directory: Path, file: str) -> bytes:
    fd = open_regular(directory / file, file)
    with naming(file), os.fdopen(fd, "rb") as stream:
        found = stream.read(MOST_CONFIG + 1)
    if len(found) > MOST_CONFIG:
        raise FormatError(f"{file}: over {MOST_CONFIG >> 20} MiB, the most that is read", hint=_SAVE_AGAIN)
    return found


def _read_config(directory: Path) -> tuple[bytes, dict[str, Any]]:
    if not os.path.lexists(directory / CONFIG):
        raise InputError(
            f"{directory}: no {CONFIG}", hint=f"copy {CONFIG} from the model's repository into the directory"
        )
    raw = _read_file(directory, CONFIG)
    return raw, parse_object(raw, CONFIG, f"restore {CONFIG} from the model's repository")


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name -> shard, or None where there is no index."""
    if not os.path.lexists(directory / INDEX):
        return None
    hint = f"restore {INDEX} from the model's repository, or save the model again"
    index = parse_object(_read_file(directory, INDEX), INDEX, hint)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{INDEX}: no weight_map with entries", hint=hint)
    faults = _index_faults(weight_map, index.get("metadata", {}))
    if len(faults) == 1:
        raise FormatError(f"{INDEX}: {faults[0]}", hint=hint)
    if faults:
        raise FormatError(f"{INDEX}: {len(faults)} faults", offenders=faults, hint=hint)
    if SINGLE not in weight_map.values() and os.path.lexists(directory / SINGLE):
        raise InputError(
            f"{directory}: {SINGLE} beside a {INDEX} that does not name it",
            hint="two checkpoints in one directory, and programs differ in which they read: delete one",
        )
    return weight_map


def _index_faults(weight_map: Mapping[str, Any], metadata: object) -> list[str]:
    faults: list[str] = []
    wrong = [name for name, shard in weight_map.items() if not isinstance(shard, str)]
    faults.extend(f"{shown(name)}: expected a file name" for name in wrong)
    for shard in sorted({shard for shard in weight_map.values() if isinstance(shard, str)}):
        parts = PurePosixPath(shard)
        if parts.is_absolute() or ".." in parts.parts or "\\" in shard:
            faults.append(f"{shown(shard)}: a path outside the directory, expected a file name in it")
        elif str(parts) != shard or not shard.endswith(".safetensors") or not shard.isprintable():
            faults.append(f"{shown(shard)}: expected the name of a .safetensors file")
    total = metadata.get("total_size", 0) if isinstance(metadata, dict) else metadata
    if type(total) not in {int, float}:
        faults.append(f"metadata.total_size: {shown(repr(total))[:60]}, expected a number")
    return faults


def _weight_names(directory: Path, weight_map: Mapping[str, str] | None) -> tuple[str, ...]:
    """The weight files, sorted: those of the index, else model.safetensors, else every *.safetensors."""
    if weight_map is not None:
        return tuple(sorted(set(weight_map.values())))
    names = sorted(entry.name for entry in directory.iterdir())
    if SINGLE in names:
        return (SINGLE,)
    weights = tuple(name for name in names if name.endswith(".safetensors") and not is_adapter(name))
    if not weights:
        raise without_weights(directory, names) or _no_weights(directory, names)
    if absent := _absent_parts(weights):
        if stale := _partial_sets(weights, absent):
            raise InputError(
                f"{directory}: two sets of shards, {' and '.join(stale)} incomplete",
                offenders=absent,
                hint=f"delete {' and '.join(stale)}, or the others if these are newer and the rest can be copied",
            )
        raise InputError(
            f"{directory}: {len(absent)} of its shards and {INDEX} are missing",
            offenders=absent,
            hint=_SAVE_AGAIN,
        )
    return weights


def _absent_parts(weights: Sequence[str]) -> list[str]:
    """Without an index, `name-00002-of-00003` still tells how many there should be."""
    present = set(weights)
    series = {(match[1], match[3]) for name in weights if (match := _SHARD.fullmatch(name))}
    return [
        name
        for stem, total in sorted(series)
        for number in range(1, int(total) + 1)
        if (name := f"{stem}-{number:05d}-of-{total}.safetensors") not in present
    ]


def _partial_sets(weights: Iterable[str], absent: Iterable[str]) -> list[str]:
    """Return the sets of shards of which some are missing, where another one is whole; an earlier save leaves such."""
    lacking, present = ({_SHARD.sub(r"\1-*-of-\3.safetensors", name) for name in of} for of in (absent, weights))
    return sorted(lacking) if present - lacking else []


def _no_weights(directory: Path, names: Sequence[str]) -> InputError:
    gguf = [name for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return UnsupportedError(
            f"{directory}: pickled weights only, expected safetensors (a pickle can run code)",
            offenders=pickles,
            hint="load the model with transformers where you trust it and save it with `save_pretrained`",
        )
    if gguf:
        return UnsupportedError(f"{directory}: GGUF weights only, expected safetensors", offenders=gguf, hint=_NO_GGUF)
    return InputError(f"{directory}: no *.safetensors file", hint="pass the directory that holds the weights")


def _read_headers(directory: Path, names: Iterable[str], errors: list[InputError]) -> list[Header]:
    headers = []
    for name in names:
        try:
            headers.append(read_header(directory, name))
        except InputError as error:
            errors.append(error)
    return headers


def _disagreements(
    directory: Path, headers: Sequence[Header], weight_map: Mapping[str, str] | None
) -> list[InputError]:
    """Return errors where index and shards, or two shards, disagree; only files with a valid header are compared."""
    files: dict[str, str] = {}
    errors = []
    for header in headers:
        for stored in header.tensors:
            first = files.setdefault(stored.name, stored.file)
            if first != stored.file:
                where = f"in {first} and in {stored.file}, expected in one shard"
                errors.append(InputError(f"{shown(stored.name)}: {where}", hint=_SAVE_AGAIN))
    if weight_map is None:
        twice = copies(directory, {h.file.name: [stored.name for stored in h.tensors] for h in headers})
        return [twice] if twice else errors
    read = {header.file.name for header in headers}
    errors.extend(
        InputError(f"{shown(name)}: {INDEX} says {shard}, which does not hold it", hint=_SAVE_AGAIN)
        for name, shard in weight_map.items()
        if shard in read and files.get(name) != shard
    )
    errors.extend(
        InputError(f"{shown(name)}: in {shard}, but not in {INDEX}", hint=_SAVE_AGAIN)
        for name, shard in files.items()
        if name not in weight_map
    )
    return errors


def _joined(directory: Path, errors: Sequence[InputError]) -> InputError:
    """One error for several: every message and offender, every distinct hint."""
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    lines = [line for error in errors for line in (error.offenders or (error.message,))]
    hint = "; ".join(dict.fromkeys(error.hint for error in errors))
    return kind(f"{directory}: {len(lines)} faults in its files", offenders=lines, hint=hint)
