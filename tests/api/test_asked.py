"""Requests of `calibrate`: numbers as they were given, and a model that reads text."""

from __future__ import annotations

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
