"""Scales weighted by inputs, tile by tile: compiled and torch give the same bits, and never lose to minmax."""

from __future__ import annotations

import numpy as np
import pytest

from g4convert.quantization import Method, Scheme
from g4convert.quantization.tiles import CpuTiles
from g4convert.quantization.torch_tiles import TorchTiles
from g4convert.quantization.weighted import weighted_scales
from g4convert.tensors import DType


def made(n: int, k: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n + k)
    w = random.standard_t(4, (n, k)).astype(np.float32)
    return w, np.exp(spread * random.standard_normal(k)).astype(np.float32)


def tiled(tiles: CpuTiles | TorchTiles, w: np.ndarray, h: np.ndarray | None, scheme: Scheme) -> tuple[np.ndarray, ...]:
    n, k = w.shape
    packed, scale = np.empty((n, scheme.words(k)), np.int32), np.empty((n, scheme.groups(k)), np.uint16)
    tiles.quantize(w, DType.F32, scheme, packed, scale, h)
    return packed, scale


def errors(w: np.ndarray, h: np.ndarray, scale: np.ndarray, code_max: int = 7) -> np.ndarray:
    """Weighted, of each group, float64."""
    n, groups = scale.shape
    s = (scale.astype(np.uint32) << 16).view(np.float32)[:, :, None].astype(np.float64)
    u = w.reshape(n, groups, -1).astype(np.float64)
    q = np.clip(np.rint(u / s), -code_max - 1, code_max)
    return (h.reshape(groups, -1) * (s * q - u) ** 2).sum(axis=2)


@pytest.mark.parametrize("group", [32, 64, 128, 40, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_compiled_and_torch_give_the_same_bits(group: int | None, bits: int) -> None:
    w, h = made(9, 640 if group != 40 else 120)
    h[:64] = 0
    scheme = Scheme(bits, group, Method.IMATRIX)
    for one, other in zip(tiled(CpuTiles(), w, h, scheme), tiled(TorchTiles("cpu"), w, h, scheme), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("group", [32, 128])
def test_never_worse_than_minmax_and_near_a_dense_search(group: int) -> None:
    w, h = made(200, 256)
    scheme = Scheme(4, group, Method.IMATRIX)
    _, scale = tiled(CpuTiles(), w, h, scheme)
    _, plain = tiled(CpuTiles(), w, None, Scheme(4, group, Method.MINMAX))
    found, of_minmax = errors(w, h, scale), errors(w, h, plain)
    assert (found <= of_minmax * (1 + 1e-5)).all()
    dense = (weighted_scales(w, h, group).view(np.uint32) >> 16).astype(np.uint16)
    assert found.sum() < 1.05 * errors(w, h, dense).sum() < 0.8 * of_minmax.sum()


def test_tiles_of_any_height_give_the_same_scales() -> None:
    """Groups of a row do not fall on whole blocks of 64."""
    w, h = made(40, 96)
    scheme = Scheme(4, 32, Method.IMATRIX)
    whole = tiled(CpuTiles(), w, h, scheme)
    parts = [tiled(CpuTiles(), np.ascontiguousarray(w[at : at + 7]), h, scheme) for at in range(0, 40, 7)]
    for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(one, np.concatenate(pieces))


def test_inputs_decide_and_must_be_there() -> None:
    w, h = made(8, 64)
    scheme = Scheme(4, 32, Method.IMATRIX)
    one, other = (tiled(CpuTiles(), w, inputs, scheme)[1] for inputs in (h, np.ascontiguousarray(h[::-1])))
    assert not np.array_equal(one, other)
    for inputs in (None, h[:32], h.astype(np.float64)):
        with pytest.raises(ValueError, match="imatrix needs"):
            tiled(CpuTiles(), w, inputs, scheme)


def test_zeros_tiny_and_huge_weights_have_a_scale() -> None:
    w = np.zeros((4, 32), np.float32)
    w[1], w[2] = 1e-38, 1e38
    w[3, 5] = 2.0**-110
    _, scale = tiled(CpuTiles(), w, np.ones(32, np.float32), Scheme(4, 32, Method.IMATRIX))
    assert (scale & 0x7FFF != 0).all()
    assert np.isfinite((scale.astype(np.uint32) << 16).view(np.float32)).all()
