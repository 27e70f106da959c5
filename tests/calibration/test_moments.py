"""Sums over inputs: their order, their halves, and what is kept apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from g4convert.calibration.moments import Moments, cross_products
from g4convert.calibration.team import Team


def rows(count: int, k: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, k)).astype(np.float32)


def summed(x: np.ndarray, cuts: tuple[int, ...], workers: int = 1) -> Moments:
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        moments = Moments(x.shape[1], Team(pool))
        for part in np.split(x, cuts):
            moments.add(torch.from_numpy(part))
        moments.finish()
    return moments


@pytest.mark.parametrize("k", [48, 512, 1300])
def test_it_is_the_sum_of_outer_products(k: int) -> None:
    x = rows(700, k)
    moments = summed(x, (300,))
    expected = x.astype(np.float64).T @ x
    assert np.abs(moments.h.numpy() - expected).max() < 1e-3
    assert torch.equal(moments.h, moments.h.T)
    assert moments.tokens == 700
    assert np.allclose(moments.mean_squares, np.square(x, dtype=np.float64).mean(axis=0), rtol=1e-5)


def test_threads_and_whole_pieces_do_not_show_in_a_bit() -> None:
    x = rows(2048, 1300)
    one = summed(x, ())
    assert torch.equal(one.h, summed(x, (512, 1024), workers=3).h)


@pytest.mark.parametrize("n", [48, 1300])
def test_a_sum_of_two_sides_is_that_of_their_products(n: int) -> None:
    left, right = rows(700, n), rows(1400, 64)[700:]
    pairs = [(torch.from_numpy(left[part]), torch.from_numpy(right[part])) for part in (slice(512), slice(512, 700))]
    found = []
    for workers in (1, 3):
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found.append(cross_products(pairs, n, 64, Team(pool)))
    assert torch.equal(*found)
    assert np.abs(found[0].numpy() - left.astype(np.float64).T @ right).max() < 1e-3


def test_what_judges_is_in_no_sum() -> None:
    x = rows(10, 16)
    with ThreadPoolExecutor(1) as pool:
        moments = Moments(16, Team(pool))
        moments.hold(torch.from_numpy(x[:4]))
        moments.add(torch.from_numpy(x[4:]))
        moments.hold(torch.from_numpy(x[:2]))
        moments.finish()
    assert np.array_equal(moments.held, np.concatenate((x[:4], x[:2])))
    assert np.allclose(moments.h.numpy(), x[4:].T @ x[4:], atol=1e-5)


def test_no_rows_are_no_sum() -> None:
    moments = summed(rows(0, 16), ())
    assert not moments.h.any()
    assert not moments.mean_squares.any()
    assert moments.held.shape == (0, 16)


def test_many_rows_judge_by_a_part_of_them() -> None:
    with ThreadPoolExecutor(1) as pool:
        moments = Moments(8, Team(pool))
        moments.hold(torch.from_numpy(rows(9000, 8)))
    assert moments.held.shape == (4096, 8)
