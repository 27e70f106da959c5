"""Files that outputs are compared with; `make golden` writes them anew, to be read as a difference."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_DIRECTORY = Path(__file__).parents[1] / "golden"


def check(name: str, found: str) -> None:
    """Compare with `golden/NAME`, or write it when G4CONVERT_GOLDEN=write."""
    path = _DIRECTORY / name
    if os.environ.get("G4CONVERT_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"{name} has changed; `make golden` writes it anew"


def with_changes(
    document: Mapping[str, Any], others: Mapping[str, Mapping[str, Any] | str], base: Mapping[str, Any] | None = None
) -> str:
    """One document as JSON, and of each other one the lines in which it differs.

    Args:
        document: the one that is shown whole.
        others: by name; a text stands for itself.
        base: document that the others are compared with; by default the one that is shown.
    """
    told = {name: _changes(base or document, one) for name, one in others.items()}
    return "\n".join((_json(document), *(f"\n## {name}\n{changes}" for name, changes in told.items())))


def _changes(document: Mapping[str, Any], other: Mapping[str, Any] | str) -> str:
    if isinstance(other, str):
        return other
    return "\n".join(_lines(_json(document).splitlines(), _json(other).splitlines()))


def _lines(one: list[str], other: list[str]) -> Iterator[str]:
    for line in list(difflib.unified_diff(one, other, n=0, lineterm=""))[2:]:
        if not line.startswith("@@"):
            yield line


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False)
