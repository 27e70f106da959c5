"""A weight is rounded in several ways; the gate judges them by the original's outputs where its inputs are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from g4convert.calibration.moments import Moments
from g4convert.calibration.rounding import Aim, Rounding, Way, dequantize
from g4convert.calibration.team import Team
from g4convert.quantization import Method, Scheme
from g4convert.quantization.gptq import aim

ROWS, JUDGES, K = 2000, 200, 64


@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_outputs_are_nearer_to_the_originals_where_a_weight_aims_at_them(drift: float) -> None:
    random = np.random.default_rng(0)
    mixed = np.eye(K) + 0.3 * random.standard_normal((K, K))
    x = (random.standard_normal((ROWS + JUDGES, K)) @ mixed).astype(np.float32)
    x0 = x + np.float32(drift) * x @ random.standard_normal((K, K)).astype(np.float32) / np.float32(K**0.5)
    w = random.standard_normal((96, K)).astype(np.float32)
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        moments = Moments(K, Team(pool))
        moments.add(torch.from_numpy(x[:ROWS]))
        moments.finish()
        rounding = Rounding({"one": Scheme(4, 32, Method.MSE)}, Team(pool))
        factor, judges = rounding.factor(moments), x[ROWS:]
        assert factor is not None
        moved = w.copy()
        aim(moved, torch.from_numpy((x0[:ROWS] - x[:ROWS]).T @ x[:ROWS]), factor, 0.5, pool, of_inputs=True)
        plain = rounding.round("one", w, moments, factor, judges)
        found = rounding.round("one", w, moments, factor, judges, Aim(moved, x0[ROWS:]))
    wanted = x0[ROWS:] @ w.T

    def error(codes: np.ndarray, scale: np.ndarray) -> float:
        return float(np.square(judges @ dequantize(codes, scale).T - wanted, dtype=np.float64).sum())

    before, after = error(plain.codes, plain.scale), error(found.codes, found.scale)
    assert found.way is Way.GPTQ
    assert found.errors[Way.GPTQ] == pytest.approx(after / np.square(wanted, dtype=np.float64).sum(), rel=1e-3)
    assert after < 0.5 * before if drift else np.array_equal(found.codes, plain.codes)
