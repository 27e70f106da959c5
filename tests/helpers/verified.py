"""The smallest model and its conversion, for `g4convert verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

    from helpers.program import Program, Ran


@pytest.fixture(scope="module")
def text_out(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The smallest family: source and conversion."""
    from helpers.conversions import quantized  # noqa: PLC0415 -- brings torch

    out = tmp_path_factory.mktemp("verify") / "out"
    source = checkpoints("text")
    quantized(source, out)
    return source, out


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One line of the user's own."""
    path = tmp_path_factory.mktemp("prompts") / "mine.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Which boats lie in the old harbour?"}]}\n')
    return path


def logits(g4convert: Program, pair: tuple[Path, Path], *more: object) -> Ran:
    """The level logits of the path that runs; what four bits cost a random model is not judged."""
    source, out = pair
    return g4convert("verify", out, "--reference", source, "--profile", "parity", *more)
