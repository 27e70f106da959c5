"""Scales that are found with the inputs in mind."""

from __future__ import annotations

import numpy as np
import pytest

from g4convert.quantization.gptq import nearest_codes
from g4convert.quantization.weighted import LEVELS, weighted_scales


def weight(n: int, k: int) -> np.ndarray:
    return np.random.default_rng(3).standard_t(4, (n, k)).astype(np.float32)


def errors(w: np.ndarray, scale: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Return the error of each group, in float64."""
    n, groups = scale.shape
    q = nearest_codes(w, scale).reshape(n, groups, -1)
    d = scale[:, :, None].astype(np.float64) * q - w.reshape(n, groups, -1)
    return (h.astype(np.float64).reshape(groups, -1) * d**2).sum(axis=2)


def searched(group: np.ndarray, h: np.ndarray) -> float:
    """The least error of many scales of either sign."""
    peak = np.abs(group).max()
    scales = peak / np.linspace(5.5, 20, 400)
    scales = np.concatenate((scales, -scales))[:, None]
    q = np.clip(np.rint(group / scales), -8, 7)
    return float((h * (scales * q - group) ** 2).sum(axis=1).min())


@pytest.mark.parametrize("group", [32, 128])
def test_the_search_finds_nearly_the_best_scale(group: int) -> None:
    w, h = weight(70, 256), np.exp(np.random.default_rng(4).standard_normal(256) * 2).astype(np.float32)
    scale = weighted_scales(w, h, group)
    best = np.array(
        [[searched(w[r, c : c + group], h[c : c + group]) for c in range(0, 256, group)] for r in range(len(w))]
    )
    assert errors(w, scale, h).sum() < 1.03 * best.sum()
    assert np.array_equal(scale.view(np.uint32) & 0xFFFF, np.zeros_like(scale, dtype=np.uint32))
    assert (scale < 0).any()
    assert (scale > 0).any()


def test_never_worse_than_minmax() -> None:
    w, h = weight(64, 128), np.exp(np.random.default_rng(5).standard_normal(128)).astype(np.float32)
    plain = np.abs(w.reshape(64, 4, 32)).max(axis=2) / np.float32(7.5)
    plain = (((plain.view(np.uint32) + 0x7FFF + ((plain.view(np.uint32) >> 16) & 1)) >> 16) << 16).view(np.float32)
    assert (errors(w, weighted_scales(w, h, 32), h) <= errors(w, plain, h) * (1 + 1e-5)).all()


def test_inputs_decide() -> None:
    """An outlier that meets no input may be clipped; one that meets the largest may not."""
    w = np.full((1, 32), 0.1, np.float32) * np.linspace(-1, 1, 32, dtype=np.float32)
    w[0, 7] = 0.19
    quiet, loud = np.ones(32, np.float32), np.ones(32, np.float32)
    quiet[7], loud[7] = 0, 1000
    kept = [abs(float((nearest_codes(w, s := weighted_scales(w, h, 32)) * s)[0, 7]) - 0.19) for h in (quiet, loud)]
    assert kept[1] < 0.01 < kept[0]


def test_zeros_and_tiny_weights_have_a_scale() -> None:
    w = np.zeros((3, 64), np.float32)
    w[1, :32] = 1e-38
    scale = weighted_scales(w, np.zeros(64, np.float32), 32)
    assert np.isfinite(scale).all()
    assert (scale != 0).all()


def test_levels_reach_beyond_the_code_range() -> None:
    assert LEVELS[0] == 5.5
    assert LEVELS[-1] == 20
    assert len(LEVELS) == 30
