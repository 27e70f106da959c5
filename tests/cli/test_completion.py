"""Completion in a shell: names of recipes, profiles, engines and values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = "from g4convert.cli.start import main; main()"


def complete(line: str) -> list[str]:
    """Return what bash is told to complete a line with."""
    words = line.split(" ")
    asked = {"_G4CONVERT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = f"import sys; sys.argv[:] = ['g4convert']; {PROGRAM}"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("g4convert quantize M -r w8", ["w8a16-g32"]),
        ("g4convert recipe show qat", ["qat-q4_0"]),
        ("g4convert plan M --method m", ["minmax", "mse"]),
        ("g4convert plan M --pack ple", ["ple_projection", "ple_embedding"]),
        ("g4convert plan M --bits lm_head=", ["lm_head=4", "lm_head=8", "lm_head=16"]),
        ("g4convert plan M --bits lm", ["lm_head="]),
        ("g4convert plan M --layout ", ["full", "text-only"]),
        ("g4convert check OUT --engine ", ["transformers", "vllm", "sglang"]),
        ("g4convert verify OUT --profile p", ["parity"]),
    ],
)
def test_names_are_completed(line: str, names: list[str]) -> None:
    assert complete(line) == names
