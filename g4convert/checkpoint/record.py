"""Reads g4convert.json, an output's record of its making; a claim of the directory's owner, not a proof."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from g4convert.checkpoint.files import open_regular
from g4convert.errors import InputError

RECORD: Final = "g4convert.json"
"""Name of the file."""
_MOST: Final = 256 << 20
"""Largest size of the record in bytes; a million tensors take a third of it."""


def record(directory: Path) -> Mapping[str, Any]:
    """Return an output's record; empty if there is none or it cannot be read."""
    try:
        with os.fdopen(open_regular(directory / RECORD, RECORD), "rb") as file:
            said = json.loads(file.read(_MOST))
    except (OSError, ValueError, RecursionError, InputError):
        return {}
    return said if isinstance(said, dict) else {}
