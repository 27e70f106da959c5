"""`~` is the home directory wherever a path is given: shells do not expand it after `=`, and Python never does."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, g4convert

import g4convert as package
from g4convert.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["g4convert"]  # a fixture


@pytest.fixture
def home(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a model, a recipe and texts, and another one where the program runs."""
    home = tmp_path / "home"
    shutil.copytree(text, home / "model")
    (home / "mine.yaml").write_text("extends: w4a16-g32\nmethod: minmax\n")
    (home / "mine.jsonl").write_text(json.dumps({"text": "the boats lie in the old harbour " * 60}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


def test_options_and_arguments(home: Path, g4convert: Program, tmp_path: Path) -> None:
    quantize = ("quantize", "~/model", "--output=~/out", "-r", "~/mine.yaml", "--verify", "none", "-q")
    assert g4convert(*quantize).status == 0
    assert (home / "out" / "config.json").is_file()
    assert g4convert("recipe", "check", "~/mine.yaml").status == 0
    verify = ("verify", "~/out", "--reference", "~/model", "--html=~/page.html", "--junit=~/page.xml", "-q")
    assert g4convert(*verify).status == 0
    assert (home / "page.html").is_file()
    assert (home / "page.xml").is_file()
    texts = ("--data=~/mine.jsonl", "--samples=2", "--length=16", "--no-answers")
    made = g4convert("calibrate", "~/model", "--output=~/ids.safetensors", *texts, "--no-statistics", "-q")
    assert (made.status, made.err) == (0, "")
    assert (home / "ids.safetensors").is_file()
    assert g4convert("plan", "~/model", "-r", "~/nothing.yaml").status == 2
    assert g4convert("verify", "~/out", "--profile", "~/nothing.yaml", "--level", "logits").status == 2
    assert not list((tmp_path / "elsewhere").iterdir())


def test_python(home: Path, tmp_path: Path) -> None:
    package.quantize("~/model", "~/out", recipe="~/mine.yaml", verify=None)
    assert (home / "out" / "config.json").is_file()
    made = package.calibrate(
        "~/model", "~/ids.safetensors", data="~/mine.jsonl", samples=2, length=16, answers=False, statistics=False
    )
    assert made.output == home / "ids.safetensors"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_home_of_nobody_is_a_directory_that_is_not_there(g4convert: Program) -> None:
    assert g4convert("plan", "~nobody-here/model").status == 3
    with pytest.raises(InputError, match="no such directory"):
        package.plan("~nobody-here/model")
