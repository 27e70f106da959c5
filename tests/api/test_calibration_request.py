"""Requests of `calibrate`: numbers as they were given, and a model that reads text."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from g4convert import calibrate
from g4convert.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints


@pytest.mark.parametrize("family", ["assistant", "unified_assistant"])
def test_a_drafter_is_refused(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a drafter") as caught:
        calibrate(checkpoints(family), tmp_path / "ids.safetensors")
    assert caught.value.hint.startswith("calibrate the model that it drafts for")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("length", [0, -1, 15])
def test_a_length_is_taken_as_it_is_given(length: int, checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--length {length}: expected 16 to "):
        calibrate(checkpoints("text"), tmp_path / "ids.safetensors", length=length, answers=False, statistics=False)
    assert [*tmp_path.iterdir()] == []


def test_a_question_fits_the_context(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "mine.jsonl"
    shutil.copytree(checkpoints("text"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    asked, said = ({"role": role, "content": "boats " * 80} for role in ("user", "assistant"))
    short = {"role": "user", "content": "Which boats?"}
    lines = [{"messages": [short, said]}, {"messages": [asked, said]}, {"messages": [asked]}, {"text": "boats " * 80}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match="questions longer than the model's context of 64 tokens") as caught:
        calibrate(model, tmp_path / "ids.safetensors", data=data, length=16, answers=True, statistics=False)
    assert [line.partition(":")[0] for line in caught.value.offenders] == ["line 2", "line 3", "line 4"]
    assert "--no-answers" in caught.value.hint
    calibrate(model, tmp_path / "ids.safetensors", data=data, length=16, answers=False, statistics=False)
