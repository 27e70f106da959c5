"""Texts that calibrate: what ships, what users bring, and what is refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from g4convert.calibration.documents import KINDS, bundled_documents, read_documents
from g4convert.errors import EnvironmentFault, InputError
from g4convert.verification.probes.suite import bundled as probes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TALK = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}


def test_every_kind_ships_and_is_a_conversation_in_turns() -> None:
    texts = bundled_documents()
    assert {one.kind for one in texts} == {*KINDS}
    for one in texts:
        roles = [message["role"] for message in one.messages]
        assert roles == [("user", "assistant")[number % 2] for number in range(len(roles))]
        assert roles[-1] == "assistant"


def test_what_judges_never_calibrates() -> None:
    judging = {message["content"].strip() for one in probes() for message in one.messages}
    judging |= {one.answer.strip() for one in probes()}
    calibrating = {message["content"].strip() for one in bundled_documents() for message in one.messages}
    assert not judging & calibrating


def test_each_form_of_a_line_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [TALK, {"text": "Plain words."}, {"prompt": "Once", "kind": "tales"}]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    talk, plain, prompt = read_documents(str(path))
    assert talk.text == "Hello\nGood day"
    assert (plain.text, plain.kind) == ("Plain words.", "data")
    assert (prompt.text, prompt.kind) == ("Once", "tales")


def test_paragraphs_of_a_text_are_joined_until_they_have_some_length(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(["word " * 100] * 10))
    found = read_documents(str(path))
    assert [len(one.text) > 1900 for one in found] == [True, True, False], "the last holds what is left"
    assert sum(one.text.count("word") for one in found) == 1000


def test_every_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    bad = [
        "not json",
        "[1]",
        json.dumps({"txt": "a"}),
        json.dumps({"text": "a", "prompt": "b"}),
        json.dumps({"text": " "}),
        json.dumps({"messages": "hello"}),
        json.dumps({"messages": [{"role": "robot", "content": "a"}]}),
        json.dumps({"messages": [{"content": "a"}]}),
    ]
    path.write_text("\n".join([json.dumps(TALK), *bad]))
    with pytest.raises(InputError, match="8 lines cannot be read") as refused:
        read_documents(str(path))
    assert [one.partition(":")[0] for one in refused.value.offenders] == [f"line {number}" for number in range(2, 10)]
    assert "messages" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"\n\n", "holds no text"),
        ("empty.txt", b" \n", "holds no text"),
        ("bytes.jsonl", b"\xff\xfe", "cannot be read"),
        ("other.csv", b"a,b", "neither .jsonl nor .txt"),
    ],
)
def test_files_that_cannot_be_used_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_documents(str(tmp_path / name))
    with pytest.raises(InputError, match="cannot be read"):
        read_documents(str(tmp_path / "missing.jsonl"))


def test_a_dataset_is_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        asked.append((name, split, streaming))
        if split == "missing":
            raise ValueError('Unknown split "missing".\nMore.')
        return iter([{"id": 1, **TALK}, {"id": 2, "text": None, "prompt": "Once"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [one.text for one in read_documents("org/talks:test")] == ["Hello\nGood day", "Once"]
    assert asked == [("org/talks", "test", True)]
    with pytest.raises(EnvironmentFault, match="Unknown split"):
        read_documents("org/talks:missing")


def test_a_dataset_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EnvironmentFault, match="needs the library datasets") as refused:
        read_documents("org/talks")
    assert "g4convert[datasets]" in refused.value.hint
