"""Files of texts and conversations: what ends a line, and what only stands in a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from g4convert.bounded import read_text
from g4convert.calibration.documents import read_documents
from g4convert.errors import InputError
from g4convert.forward.conversations import read_prompts

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "one\u2028two\u2029three\x85four\x1cfive\x0bsix\x0cseven"
"""Characters at which `str.splitlines` cuts; JSON has those above \x1f as they are."""
LINES = [json.dumps({"prompt": f"{WORDS} {number}"}, ensure_ascii=False) for number in range(3)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_only_line_ends_end_a_line_of_json(begin: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes((begin + end.join([*LINES, ""])).encode())
    wanted = [f"{WORDS} {number}" for number in range(3)]
    assert [one.text for one in read_documents(str(path))] == wanted
    assert [one.messages[0]["content"] for one in read_prompts(path, chat=False)] == wanted


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_paragraphs_are_the_same_with_any_line_ends(end: str, tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number}.\n" + "word of it " * 60 for number in range(12))
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "other.txt").write_bytes(f"\ufeff{text}".replace("\n", end).encode())
    unix, other = (read_documents(str(tmp_path / name)) for name in ("unix.txt", "other.txt"))
    assert len(unix) > 2
    assert other == unix


def test_a_line_that_is_malformed_has_its_number_with_any_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes("\r\n".join([LINES[0], "", "no JSON", LINES[1], '{"prompt": [1]}']).encode())
    for read in (lambda: read_documents(str(path)), lambda: read_prompts(path, chat=False)):
        with pytest.raises(InputError, match="2 lines cannot be read") as refused:
            read()
        assert [one.partition(":")[0] for one in refused.value.offenders] == ["line 3", "line 5"]


def test_the_place_of_a_byte_that_is_not_utf8_counts_from_the_files_first(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(UnicodeDecodeError) as caught:
        read_text(path, 100)
    assert caught.value.start == 5
