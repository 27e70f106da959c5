"""The rewritten sources differ from the original in names only."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import Checkpoints
from helpers import reload
from helpers.dialect_sources import DIALECTS, cases, with_shared_kv, write
from helpers.grids import one_in
from helpers.prompts import logits, prompts
from safetensors.torch import load_file

SPLITTING = {"per expert", "moe.experts per expert"}
ADDING = {"short embedders", "tied head", "rotary buffers"}


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


def values(tensors: dict[str, torch.Tensor]) -> Counter[bytes]:
    return Counter(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors.values())


@pytest.mark.parametrize(("dialect", "family"), one_in(3, cases()))
def test_names_change_and_values_do_not(dialect: str, family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    before = stored(checkpoints(family))
    directory = write(checkpoints(family), tmp_path / "out", dialect)
    after = stored(directory)
    assert set(after) != set(before)
    assert set(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]) == set(after)
    if dialect in SPLITTING:
        assert values(after).total() > values(before).total()
        assert sum(t.nbytes for t in after.values()) == sum(t.nbytes for t in before.values())
    elif dialect in ADDING:
        assert not values(before) - values(after)
    else:
        assert values(after) == values(before)
    assert (directory / "config.json").read_bytes() == (checkpoints(family) / "config.json").read_bytes()


def test_per_expert_sources_compute_the_same(moe: Path, tmp_path: Path) -> None:
    original = reload.reload(moe)
    split = reload.reload(write(moe, tmp_path / "out", "per expert"))
    for prompt in prompts(original):
        assert torch.equal(logits(original, prompt), logits(split, prompt))


def test_dead_keys_and_values_change_nothing(e2b: Path, tmp_path: Path) -> None:
    original, directory = reload.reload(e2b), with_shared_kv(e2b, tmp_path / "out")
    assert len(stored(directory)) == len(stored(e2b)) + 9
    extended = reload.reload(directory)
    for prompt in prompts(original):
        assert torch.equal(logits(original, prompt), logits(extended, prompt))


def test_descriptions_are_one_line() -> None:
    assert all(dialect.description and "\n" not in dialect.description for dialect in DIALECTS.values())
