"""Directory of an unfinished calibration file: its ids, the sums of its recording's stages, the values between them.

    FILE.partial/request.json                the request: model, texts, samples, length, seed, who answers
    FILE.partial/ids.safetensors             the ids
    FILE.partial/states/run.json             the model and the ids
    FILE.partial/states/stage-0.safetensors  sums before the layers
    FILE.partial/states/stage-4.safetensors  sums of layer 3
    FILE.partial/states/hidden-0.f32 ...     see `states`

A stage is kept when everything that the next stage reads is on disk. A stopped run resumes if its sums and states match
their checksums; otherwise the directory is emptied and the recording starts again.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from g4convert.calibration.squares import Sums
from g4convert.calibration.states import States
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import hash_of_request
from g4convert.conversion.ranks import ALONE, Ranks
from g4convert.conversion.statistics import hash_of
from g4convert.errors import InputError
from g4convert.whole_files import write_whole

_RUN: Final = "run.json"
_SUMS: Final = ".sums"
_TOKENS: Final = ".tokens"


@dataclass(frozen=True, slots=True)
class Kept:
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
        if self._is_ours():
            while (sums := self._sums(len(found))) is not None:
                found.append(sums)
        if found and self.states.is_sound(len(found) - 1):
            return found
        self.states.drop()
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

    def _is_ours(self) -> bool:
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
        return self.file.with_name(f"{self.file.name}.partial")

    @property
    def states(self) -> Path:
        """Directory of the values that flow between layers."""
        return self.directory / "states"

    def kept_ids(self) -> CalibrationFile | None:
        """Read the ids of an earlier run of the same request; None if there are none."""
        path = self.directory / _REQUEST
        if not path.is_file() or path.read_bytes() != self._request:
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
        self.directory.mkdir(parents=True)
        ids.save(self.directory / _IDS)
        write_whole(self.directory / _REQUEST, self._request)

    def drop(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def hash(self) -> str:
        """Hash of the request, which the finished file has."""
        return hash_of_request(self.request)

    @property
    def _request(self) -> bytes:
        return json.dumps(dict(self.request), sort_keys=True).encode()
