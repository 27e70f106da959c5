"""Directory of an unfinished calibration file: its ids, the sums of its recording's stages, the values between them.

    FILE.partial/request.json                the request: model, texts, samples, length, seed, who answers
    FILE.partial/ids.safetensors             the ids
    FILE.partial/states/run.json             the model and the ids
    FILE.partial/states/stage-0.safetensors  sums before the layers
    FILE.partial/states/stage-4.safetensors  sums of layer 3
    FILE.partial/states/hidden-0.f32 ...     see `states`

A stage is kept when everything that the next stage reads is on disk. A stopped run resumes if its sums and states match
their checksums; otherwise the directory is emptied and the recording starts again. Only files that a recording writes
are removed: a directory of that name may be somebody's.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from g4convert.calibration.squares import Sums
from g4convert.calibration.states import States
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import hash_of_request
from g4convert.conversion.lock import Lock
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.conversion.statistics import hash_of
from g4convert.errors import G4Error, InputError
from g4convert.whole_files import write_whole

_STATES: Final = "states"
_RUN: Final = "run.json"
_SUMS: Final = ".sums"
_TOKENS: Final = ".tokens"
_WRITTEN: Final = re.compile(
    r"request\.json|ids\.safetensors|(states/)?(run\.json|stage-\d+\.safetensors|sealed-\d+\.json|[\w-]+\.f32"
    r"|\.g4convert-[0-9a-f]{16}\.writing)"
)
"""Names of the files that a recording writes."""


@dataclass(frozen=True, slots=True)
class UnfinishedRecording:
    """Directory of an unfinished recording.

    Args:
        directory: path, created with the first array.
        facts: model and token ids of the run, as JSON.
        ranks: ranks that record together; rank 0 keeps the sums.
    """

    directory: Path
    facts: Mapping[str, Any]
    ranks: Ranks = ALONE

    @property
    def states(self) -> States:
        """Arrays in the directory."""
        return States(self.directory, self.ranks)

    def resumed(self) -> list[Sums]:
        """Read the sums of the finished stages; empty the directory and return none if a checksum or fact differs."""
        found: list[Sums] = []
        if self.is_ours():
            while (sums := self._sums(len(found))) is not None:
                found.append(sums)
        if found and self.states.is_sound(len(found) - 1):
            return found
        drop(self.directory)
        return []

    def keep(self, stage: int, sums: Sums) -> None:
        """Save the sums of a stage: stage 0 comes before the layers, stage n + 1 is layer n."""
        self.states.seal(stage)
        if not stage:
            write_whole(self.directory / _RUN, self._facts)
        arrays = {
            f"{name}{end}": one for name, both in sums.items() for end, one in zip((_SUMS, _TOKENS), both, strict=True)
        }
        write_whole(self._path(stage), save(arrays, metadata={"sha256": hash_of(arrays)}))

    def is_ours(self) -> bool:
        """Return whether the directory has stages of this model and these ids."""
        path = self.directory / _RUN
        return path.is_file() and path.stat().st_size == len(self._facts) and path.read_bytes() == self._facts

    def _sums(self, stage: int) -> Sums | None:
        """Read the sums of a stage; None if they are missing or damaged."""
        try:
            with safe_open(self._path(stage), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
                stated = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        names = [name.removesuffix(_SUMS) for name in arrays if name.endswith(_SUMS)]
        if stated != hash_of(arrays) or any(name + _TOKENS not in arrays for name in names):
            return None
        return {name: (arrays[name + _SUMS], arrays[name + _TOKENS]) for name in names}

    @property
    def _facts(self) -> bytes:
        return json.dumps(dict(self.facts), sort_keys=True).encode()

    def _path(self, stage: int) -> Path:
        return self.directory / f"stage-{stage}.safetensors"


def partial_of(file: Path) -> Path:
    """Return the directory of an unfinished calibration file, beside the file."""
    return file.with_name(f"{file.name}.partial")


def check_ours(directory: Path) -> None:
    """Check that nothing is in the way of a recording: no directory is there, or one that an earlier one wrote.

    Raises:
        InputError: no directory, or one with files that no recording writes, or that a link or another name leads to.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise InputError(f"{directory}: is no directory that a recording made", hint="move it away")
    if others := sorted(name for name, ours in _entries_of(directory) if not ours):
        text = f"{directory}: holds {len(others)} files that no recording wrote, or that have another name elsewhere"
        raise InputError(text, offenders=others, hint="move it away")


def drop(directory: Path) -> None:
    """Remove the files that recordings write, and the directory if nothing else is in it."""
    if directory.is_symlink() or not directory.is_dir():
        return
    for name, ours in _entries_of(directory):
        if ours:
            (directory / name).unlink(missing_ok=True)
    for place in (directory / _STATES, directory):
        with suppress(OSError):  # not empty, or not there
            place.rmdir()


def clean(file: Path, is_same: Callable[[], bool]) -> None:
    """Remove what a run that was killed behind its last write left beside a file, unless another run is at work.

    Args:
        file: the calibration file, which is whole.
        is_same: says, once the lock is taken, whether the directory is one of which the file was made.
    """
    lock = Lock.beside(file)
    if not any(map(os.path.lexists, (lock.path, partial_of(file)))):
        return
    with suppress(G4Error, OSError), lock:  # it may lie where nothing can be written
        lock.take()
        if is_same():
            drop(partial_of(file))


def _entries_of(directory: Path) -> Iterator[tuple[str, bool]]:
    """Yield what is in a directory, and whether it is a file that recordings write; other directories are one thing."""
    for prefix, place in (("", directory), (f"{_STATES}/", directory / _STATES)):
        if place.is_symlink() or not place.is_dir():
            continue
        for entry in [*os.scandir(place)]:
            name, found = f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
            if name != _STATES or not stat.S_ISDIR(found.st_mode):
                yield name, bool(_WRITTEN.fullmatch(name)) and stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


_REQUEST: Final = "request.json"
_IDS: Final = "ids.safetensors"


@dataclass(frozen=True, slots=True)
class Begun:
    """Directory of an unfinished calibration file.

    Args:
        file: the calibration file.
        request: everything that its ids depend on, as JSON.
    """

    file: Path
    request: Mapping[str, Any]

    @property
    def directory(self) -> Path:
        """Path of the directory, beside the file."""
        return partial_of(self.file)

    @property
    def states(self) -> Path:
        """Directory of the values that flow between layers."""
        return self.directory / _STATES

    def kept_ids(self) -> CalibrationFile | None:
        """Read the ids of an earlier run of the same request; None if there are none."""
        if not self._is_ours():
            return None
        try:
            return CalibrationFile.load(self.directory / _IDS)
        except InputError:
            return None

    def finished(self, *, statistics: bool) -> CalibrationFile | None:
        """Read the file if it is there and of the same request; None if it is of another.

        Args:
            statistics: whether it must have statistics; if not, it must have none.

        Raises:
            InputError: the file is no calibration file, or damaged.
        """
        found = CalibrationFile.load(self.file)
        same = found.request == self.hash and (found.statistics is not None) is statistics
        return found if same else None

    def keep(self, ids: CalibrationFile) -> None:
        """Write ids and request, in place of an earlier run's."""
        self.drop()
        self.directory.mkdir(parents=True, exist_ok=True)
        ids.save(self.directory / _IDS)
        write_whole(self.directory / _REQUEST, self._request)

    def clean(self) -> None:
        """Remove what a run of the same request that was killed behind its last write left; see `clean`."""
        clean(self.file, self._is_ours)

    def drop(self) -> None:
        """Remove the directory; see `drop`."""
        drop(self.directory)

    @property
    def hash(self) -> str:
        """Hash of the request, which the finished file has."""
        return hash_of_request(self.request)

    def _is_ours(self) -> bool:
        path = self.directory / _REQUEST
        return path.is_file() and path.read_bytes() == self._request

    @property
    def _request(self) -> bytes:
        return json.dumps(dict(self.request), sort_keys=True).encode()
