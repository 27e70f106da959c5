"""Inputs of an expert's calibration: the tokens that transformers' own forward routes to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from g4convert.calibration.layer import LayerPass
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Rounded, Rounding
from g4convert.calibration.states import States
from g4convert.calibration.team import Team
from g4convert.calibration.tokens import Tokens
from g4convert.calibration.work import LayerWeights, LayerWork
from g4convert.forward.load import load
from g4convert.quantization import Method, Scheme

if TYPE_CHECKING:
    from pathlib import Path

    from g4convert.calibration.moments import Moments
    from g4convert.quantization.factor import Factor

SAMPLES, LENGTH = 8, 24


class Recording(Rounding):
    """Rounds, and keeps what it was given for the first projection of each expert."""

    seen: dict[str, tuple[np.ndarray, int, np.ndarray]] = {}  # noqa: RUF012 -- one test, one recorder

    taken: list[np.ndarray] = []  # noqa: RUF012 -- the same

    def factor(self, moments: Moments) -> Factor | None:
        """See `Rounding.factor`."""
        self.taken[:] = [moments.h.numpy().copy()]
        return super().factor(moments)

    def round(self, name: str, w: np.ndarray, moments: Moments, factor: Factor | None, judges: np.ndarray) -> Rounded:
        """See `Rounding.round`."""
        self.seen[name] = self.taken[0], moments.tokens, judges
        return super().round(name, w, moments, factor, judges)


def routed(source: Path, given: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [t, h] and experts [t, k] of the first layer, as transformers' forward has them."""
    model = load(source)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts = model.get_decoder().layers[0].experts
    experts.register_forward_pre_hook(lambda _, args: kept.append((args[0], args[1])))
    with torch.no_grad():
        for ids in given.ids:
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    inputs, index = (torch.cat(parts).numpy() for parts in zip(*kept, strict=True))
    return inputs.astype(np.float64), index


def test_the_sum_of_an_expert_is_over_the_tokens_that_are_routed_to_it(moe: Path, tmp_path: Path) -> None:
    given = Tokens(np.random.default_rng(0).integers(5, 250, (SAMPLES, LENGTH), dtype=np.int32))
    states = States(tmp_path / "states")
    replay = Replay.open(moe, given, states)
    hidden, out = states.make("a", replay.shape), states.make("b", replay.shape)
    replay.embed(hidden)
    plain = load(moe).get_decoder().layers[0].experts
    config = replay.config
    names = {
        f"experts.{e}.{part}_proj": f"experts.{e}.{part}_proj"
        for e in range(config.num_experts)
        for part in ("gate", "up", "down")
    }

    def read(path: str) -> np.ndarray:
        expert, part = int(path.split(".")[1]), path.split(".")[2]
        half = config.moe_intermediate_size
        both, down = plain.gate_up_proj[expert].detach(), plain.down_proj[expert].detach()
        return {"gate_proj": both[:half], "up_proj": both[half:], "down_proj": down}[part].numpy()

    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rounding = Recording(dict.fromkeys(names, Scheme(4, 32, Method.MSE)), Team(pool))
        weights = LayerWeights(names, read, lambda *_: [], lambda _: None)
        LayerPass(LayerWork(replay, 0, weights, rounding, Team(pool))).run(hidden, out)
    inputs, index = routed(moe, given)
    training = np.repeat(~np.isin(np.arange(SAMPLES), [*given.judges]), LENGTH)
    everyone = inputs[training]
    prior = everyone.T @ everyone * inputs.shape[1] / len(everyone)
    for expert in range(config.num_experts):
        mine = (index == expert).any(axis=1)
        rows = inputs[mine & training]
        h, tokens, judges = rounding.seen[f"experts.{expert}.gate_proj"]
        assert tokens == len(rows)
        assert np.allclose(h, rows.T @ rows + prior, rtol=1e-4, atol=1e-4 * np.abs(prior).max())
        own = inputs[mine & ~training]
        assert np.allclose(judges, own if len(own) >= 32 else inputs[~training], atol=1e-4)
