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
_MAX_RECORD_BYTES: Final = 256 << 20
"""Largest size of the record in bytes; a million tensors take a third of it."""


def record(directory: Path) -> Mapping[str, Any]:
    """Return an output's record; empty if there is none or it cannot be read."""
    try:
        with os.fdopen(open_regular(directory / RECORD, RECORD), "rb") as file:
            content = json.loads(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError, InputError):
        return {}
    return content if isinstance(content, dict) else {}
