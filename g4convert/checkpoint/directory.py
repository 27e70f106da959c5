"""Opens a checkpoint directory: its config, the tensors in its weight files, and all other files.

    config.json                        read here, rewritten in the output
    index and *.safetensors            weights, or stray; see `shards`
    everything else, recursively       carried over or left behind; see `beside`

All faults are gathered and raised as one error.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.beside import Beside
from g4convert.checkpoint.files import open_regular, parse_object, read_whole
from g4convert.checkpoint.header import Header, StoredTensor, WeightFile, read_header
from g4convert.checkpoint.naming import naming
from g4convert.checkpoint.not_a_model import diagnose_format
from g4convert.checkpoint.shards import INDEX, NO_GGUF, disagreements, read_index, weight_names
from g4convert.errors import FormatError, InputError, UnsupportedError
from g4convert.tensors import TensorInfo

__all__ = ["Checkpoint", "StoredTensor", "WeightFile"]

CONFIG: Final = "config.json"


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
        """Open a checkpoint directory.

        Raises:
            InputError: no directory, nothing usable in it, or index and shards disagree.
            FormatError: a file breaks its format.
            UnsupportedError: the weights are of another format.
        """
        directory = Path(path)
        _check_directory(directory)
        weight_map = read_index(directory)
        names = weight_names(directory, weight_map)
        errors: list[InputError] = []
        config_bytes, config = b"", dict[str, Any]()
        try:
            config_bytes, config = _read_config(directory)
        except InputError as error:
            errors.append(error)
        headers = _read_headers(directory, names, errors)
        if os.path.lexists(directory / CONFIG):  # without it, the files need not be a model's
            errors.extend(disagreements(directory, headers, weight_map))
        if errors:
            raise _join_errors(directory, errors)
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
        """Return this checkpoint with side files chosen by patterns; checks that all of them exist.

        Args:
            carry: see `Beside.of`.
            leave: see `Beside.of`.

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
        """Files beside the weights that are carried over: relative posix paths, sorted."""
        return self.beside.side

    @property
    def stray_files(self) -> tuple[str, ...]:
        """Weights that are not read, and files that training and adapters leave; not carried over."""
        return self.beside.stray

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the weight files, relative to the directory."""
        return tuple(file.name for file in self.files)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Return name, dtype and shape of every stored tensor, by name."""
        return {name: stored.info for name, stored in self.tensors.items()}

    def read(self, name: str) -> bytes:
        """Read one small tensor whole.

        Raises:
            KeyError: no tensor has this name.
            FormatError: the file was cut since it was opened.
        """
        return self.read_many([name])[name]

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Read small tensors whole, by name; each file is opened once.

        Raises:
            KeyError: no tensor has one of the names.
            FormatError: a file was cut since it was opened.
        """
        by_file: defaultdict[str, list[StoredTensor]] = defaultdict(list)
        for name in names:
            by_file[self.tensors[name].file].append(self.tensors[name])
        contents: dict[str, bytes] = {}
        for file, tensors in by_file.items():
            fd = open_regular(self.path / file, file)
            try:
                with naming(file):
                    contents |= {tensor.name: os.pread(fd, tensor.info.nbytes, tensor.begin) for tensor in tensors}
            finally:
                os.close(fd)
            for tensor in tensors:
                nbytes = len(contents[tensor.name])
                if nbytes != tensor.info.nbytes:
                    raise FormatError(
                        f"{file}: {tensor.name}: read {nbytes} bytes, expected {tensor.info.nbytes}",
                        hint="start again when nothing writes it",
                    )
        return contents

    def fingerprint(self) -> dict[str, dict[str, int | str]]:
        """Return the facts, by file name, that must not change between a run and its continuation.

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
        """Return a sha256 over the fingerprint without times: equal for copies of the same checkpoint."""
        timeless = {
            name: {key: value for key, value in values.items() if key != "mtime_ns"}
            for name, values in self.fingerprint().items()
        }
        return hashlib.sha256(json.dumps(timeless, sort_keys=True).encode()).hexdigest()


def _check_directory(path: Path) -> None:
    if path.is_file():
        if path.suffix == ".gguf":
            raise UnsupportedError(f"{path}: a GGUF file, expected a safetensors directory", hint=NO_GGUF)
        if path.suffix != ".safetensors" and (error := diagnose_format(path, [path.name])):
            raise error
        holds = (path.parent / "config.json").is_file()
        hint = f"pass {path.parent}" if holds else "pass the directory that holds config.json"
        raise InputError(f"{path}: a file, expected a checkpoint directory", hint=hint)
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


def _read_config(directory: Path) -> tuple[bytes, dict[str, Any]]:
    if not os.path.lexists(directory / CONFIG):
        raise InputError(
            f"{directory}: no {CONFIG}", hint=f"copy {CONFIG} from the model's repository into the directory"
        )
    raw = read_whole(directory, CONFIG)
    return raw, parse_object(raw, CONFIG, f"restore {CONFIG} from the model's repository")


def _read_headers(directory: Path, names: Iterable[str], errors: list[InputError]) -> list[Header]:
    headers = []
    for name in names:
        try:
            headers.append(read_header(directory, name))
        except InputError as error:
            errors.append(error)
    return headers


def _join_errors(directory: Path, errors: Sequence[InputError]) -> InputError:
    """Return one error with the messages, offenders and distinct hints of all."""
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    lines = [line for error in errors for line in (error.offenders or (error.message,))]
    hint = "; ".join(dict.fromkeys(error.hint for error in errors))
    return kind(f"{directory}: {len(lines)} faults in its files", offenders=lines, hint=hint)
