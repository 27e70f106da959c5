"""The directory of an unfinished recording: what its stages found, and what flows to the next.

    FILE.partial/run.json             the model and the ids
    FILE.partial/stage-0.safetensors  sums before the layers
    FILE.partial/stage-4.safetensors  sums of layer 3
    FILE.partial/hidden-0.f32 ...     see `states`

A stage is kept when all that the next one reads is on disk. What a stopped run left is taken up where its sums and
states have their checksums; a directory in which anything else lies starts again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from g4convert.calibration.squares import Sums
from g4convert.calibration.states import States
from g4convert.conversion.statistics import hash_of

__all__ = ["Kept"]

_RUN: Final = "run.json"
_SUMS: Final = ".sums"
_TOKENS: Final = ".tokens"


@dataclass(frozen=True, slots=True)
class Kept:
    """The directory.

    Args:
        directory: where it is; made with the first array.
        facts: what the run is of, as JSON.
    """

    directory: Path
    facts: Mapping[str, Any]

    @property
    def states(self) -> States:
        """Arrays in it."""
        return States(self.directory)

    def resumed(self) -> list[Sums]:
        """Sums of the stages that are done; none, in an empty directory, if anything is not as it was left."""
        found: list[Sums] = []
        if self._is_ours():
            while (sums := self._sums(len(found))) is not None:
                found.append(sums)
        if found and self.states.is_sound(len(found) - 1):
            return found
        self.states.drop()
        return []

    def keep(self, stage: int, sums: Sums) -> None:
        """Keep what a stage found: stage 0 comes before the layers, stage n + 1 is layer n."""
        self.states.seal(stage)
        if not stage:
            (self.directory / _RUN).write_bytes(self._facts)
        arrays = {
            f"{name}{end}": one for name, both in sums.items() for end, one in zip((_SUMS, _TOKENS), both, strict=True)
        }
        unfinished = self.directory / "unfinished"
        save_file(arrays, unfinished, metadata={"sha256": hash_of(arrays)})
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(self._path(stage))

    def _is_ours(self) -> bool:
        path = self.directory / _RUN
        return path.is_file() and path.stat().st_size == len(self._facts) and path.read_bytes() == self._facts

    def _sums(self, stage: int) -> Sums | None:
        """Sums of a stage; None where there are none, or not as they were written."""
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
