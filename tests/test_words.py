"""Test that docstrings and help texts are sentences: they say what a thing is or does, and begin with that."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
BEGINNINGS = re.compile(r"(Of|That|What|Where|How|Whether|Which|Why)\b")
"""First words that make a fragment of a docstring: it says what a thing is of, not what it is."""
QUOTED = re.compile(f"[\"']{BEGINNINGS.pattern}")
"""Texts that may begin so: files without one are not parsed."""
PLACES = ("g4convert", "tests", "tools")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those of values included, and of every help text of a file."""
    code = path.read_text()
    for node in ast.walk(ast.parse(code)) if QUOTED.search(code) else ():
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


@pytest.mark.parametrize("place", PLACES)
def test_docstrings_and_help_begin_with_what_a_thing_is(place: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in sorted((ROOT / place).rglob("*.py"))
        for line, text in texts(path)
        if BEGINNINGS.match(text)
    ]
    assert found == []
