"""Layers run one at a time give what transformers' own forward gives, for every family."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.grids import two_when_quick

from g4convert.calibration.layer import LayerPass
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Rounding
from g4convert.calibration.states import States
from g4convert.calibration.team import Team
from g4convert.calibration.tokens import Tokens
from g4convert.calibration.work import LayerWeights, LayerWork
from g4convert.forward.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

FAMILIES = ("moe", "dense", "unified", "e2b", "text", "unified_text")


def tokens(samples: int, length: int, seed: int = 0) -> Tokens:
    return Tokens(np.random.default_rng(seed).integers(5, 250, (samples, length), dtype=np.int32))


def replayed(source: Path, given: Tokens, directory: Path) -> np.ndarray:
    """The states behind the last layer, no weight of which is quantized."""
    states = States(directory)
    replay = Replay.open(source, given, states)
    hidden, out = states.make("a", replay.shape), states.make("b", replay.shape)
    replay.embed(hidden)
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number in range(replay.config.num_hidden_layers):
            rounding = Rounding({}, Team(pool))
            nothing = LayerWeights({}, lambda _: np.empty(0), lambda *_: [], lambda _: None)
            LayerPass(LayerWork(replay, number, nothing, rounding, Team(pool))).run(hidden, out)
            hidden, out = out, hidden
    return np.array(hidden)


def in_one_forward(source: Path, given: Tokens) -> np.ndarray:
    model = load(source)
    kept: list[torch.Tensor] = []
    model.get_decoder().norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        for ids in given.ids:
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    return torch.cat(kept).numpy()


@pytest.mark.parametrize("family", two_when_quick(FAMILIES))
def test_layers_one_at_a_time_give_what_a_forward_gives(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source, given = checkpoints(family), tokens(3, 24)
    expected = in_one_forward(source, given)
    found = replayed(source, given, tmp_path / "states")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_sample_is_not_touched_by_its_neighbours(e2b: Path, tmp_path: Path) -> None:
    """Per-layer inputs, and keys and values that later layers read, are each sample's own."""
    both = tokens(3, 24)
    alone = Tokens(both.ids[[1, 1]])
    assert np.array_equal(replayed(e2b, both, tmp_path / "both")[1], replayed(e2b, alone, tmp_path / "alone")[0])
