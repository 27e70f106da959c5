"""Ids of an unfinished calibration file, so that a stopped run does not make them again.

FILE.partial/request.json        the request: model, texts, samples, length, seed, whether the model answers
FILE.partial/ids.safetensors     the ids
FILE.partial/states              see `kept`
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import hash_of_request
from g4convert.errors import InputError
from g4convert.whole_files import write_whole

__all__ = ["Begun"]

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
