"""Files that outputs are compared with; `make golden` writes them anew, to be read as a difference."""

import json
import os
from pathlib import Path
from typing import Any

_DIRECTORY = Path(__file__).parents[1] / "golden"


def check(name: str, found: str | dict[str, Any]) -> None:
    """Compare with `golden/NAME`, or write it when G4CONVERT_GOLDEN=write."""
    text = found if isinstance(found, str) else json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    path = _DIRECTORY / name
    if os.environ.get("G4CONVERT_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} has changed; `make golden` writes it anew"
