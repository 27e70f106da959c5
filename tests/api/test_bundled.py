"""The count of bundled token ids that a plan shows, beside what `calibrate` makes."""

from pathlib import Path

import pytest
from conftest import Checkpoints

from g4convert import plan
from g4convert.api.bundled import count_bundled_tokens
from g4convert.api.calibrate import make_bundled_ids
from g4convert.checkpoint.directory import Checkpoint
from g4convert.planning.costs import BUNDLED_TOKENS


@pytest.mark.parametrize("family", ["moe", "text"])
def test_a_plan_counts_by_the_tokenizer_of_the_model(family: str, checkpoints: Checkpoints) -> None:
    source = checkpoints(family)
    made = make_bundled_ids(source)
    counted = max(one.tokens for one in plan(source).costs)
    assert counted != BUNDLED_TOKENS
    assert counted == pytest.approx(made.samples * made.length, rel=0.25)


@pytest.mark.parametrize("words", [None, "no JSON", "{}"])
def test_without_a_tokenizer_the_released_vocabulary_counts(
    words: str | None, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoints("text") / "config.json").read_bytes())
    for file in checkpoints("text").glob("*.safetensors*"):
        (tmp_path / file.name).symlink_to(file)
    if words is not None:
        (tmp_path / "tokenizer.json").write_text(words)
    assert count_bundled_tokens(Checkpoint.open(tmp_path)) == BUNDLED_TOKENS
