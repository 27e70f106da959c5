"""Empty values of options, as of a variable of the shell that is not set: refused, never the default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, g4convert

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["g4convert"]  # a fixture


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("calibrate", "MODEL", "-o", "c.safetensors", "--device", ""), "--device : expected cpu, cuda or cuda:N"),
        (("calibrate", "MODEL", "-o", "c.safetensors", "--length", "0"), "--length 0: expected 16 to "),
        (("fit", "MODEL", "-o", "f.yaml", "--target-bits", "6", "--device", ""), "--device : expected cpu, cuda"),
        (("fit", "MODEL", "-o", "f.yaml", "--target-size", ""), "--target-size : expected a size above 0, in KB"),
        (("generate", "MODEL", "-p", "x", "--device", ""), "--device : expected cpu, cuda or cuda:N"),
    ],
)
def test_an_empty_value_is_no_default(
    words: tuple[str, ...], said: str, moe: Path, g4convert: Program, tmp_path: Path
) -> None:
    real = {"MODEL": moe, "c.safetensors": tmp_path / "c.safetensors", "f.yaml": tmp_path / "f.yaml"}
    ran = g4convert(*(real.get(word, word) for word in words))
    assert (ran.status, said in ran.err) == (2, True), ran.err
    assert [*tmp_path.iterdir()] == []
