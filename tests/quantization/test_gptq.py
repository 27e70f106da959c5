"""GPTQ against loops that are written down as the paper has them, in float64."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from g4convert.quantization.factor import damping, factorize
from g4convert.quantization.gptq import aim, gptq, nearest_codes
from g4convert.quantization.weighted import weighted_scales

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CODES = np.arange(-8, 8)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        yield threads


def inputs(tokens: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated inputs whose channels differ in size, as those of a language model do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, k)) @ (np.eye(k) + 0.3 * random.standard_normal((k, k)))
    return (mixed * np.exp(random.standard_normal(k))).astype(np.float32)


def of(h: NDArray[np.float32]) -> torch.Tensor:
    """Return a copy of H, which becomes the factor's memory."""
    return torch.from_numpy(h.copy())


def weight(n: int, k: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32) * np.float32(0.02)


def loss(codes: NDArray[np.int8], scale: NDArray[np.float32], w: NDArray[np.float32], h: NDArray[np.float32]) -> float:
    d = codes * np.repeat(scale.astype(np.float64), w.shape[1] // scale.shape[1], axis=1) - w
    return float(((d @ h.astype(np.float64)) * d).sum())


def by_elimination(
    w: NDArray[np.float32], scale: NDArray[np.float32], h: NDArray[np.float32], damp: float
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """The paper's equation 2 and 3, without a Cholesky factor: the inverse loses a row and a column at a time.

    Returns:
        Codes, and how far each quotient was from the nearest tie.
    """
    k = w.shape[1]
    group = k // scale.shape[1]
    inverse = np.linalg.inv(h.astype(np.float64) + damp * np.diagonal(h).mean(dtype=np.float64) * np.eye(k))
    left, codes, ties = w.astype(np.float64), np.zeros(w.shape, np.int8), np.zeros(w.shape)
    for i in np.argsort(-np.diagonal(h), kind="stable"):
        s = scale[:, i // group].astype(np.float64)
        u = left[:, i] / s
        codes[:, i] = np.clip(np.rint(u), -8, 7)
        ties[:, i] = np.abs(u - np.floor(u) - 0.5)
        error = (left[:, i] - s * codes[:, i]) / inverse[i, i]
        left -= np.outer(error, inverse[i])
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes, ties


def by_three_factorisations(
    w: NDArray[np.float32], scale: NDArray[np.float32], h: NDArray[np.float32], damp: float
) -> NDArray[np.int8]:
    """The form that other tools use: factorise, invert, factorise; columns permuted, groups by their old place."""
    k = w.shape[1]
    order = np.argsort(-np.diagonal(h), kind="stable")
    damped = torch.from_numpy(h.astype(np.float64)[order][:, order])
    damped += damp * damped.diagonal().mean() * torch.eye(k)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).numpy()
    left, codes = w.astype(np.float64)[:, order], np.zeros(w.shape, np.int8)
    for i in range(k):
        s = scale[:, order[i] // (k // scale.shape[1])].astype(np.float64)
        codes[:, order[i]] = np.clip(np.rint(left[:, i] / s), -8, 7)
        error = (left[:, i] - s * codes[:, order[i]]) / upper[i, i]
        left[:, i:] -= np.outer(error, upper[i, i:])
    return codes


@pytest.mark.parametrize(("n", "k", "group"), [(300, 96, 32), (40, 256, 64), (7, 384, 384)])
def test_codes_are_those_of_the_paper(n: int, k: int, group: int, pool: ThreadPoolExecutor) -> None:
    x, w = inputs(3 * k, k), weight(n, k)
    h = x.T @ x
    scale = weighted_scales(w, np.diagonal(h), group)
    factor = factorize(of(h), 0.05)
    assert factor is not None
    codes = gptq(w, scale, factor, pool)
    expected, ties = by_elimination(w, scale, h, 0.05)
    assert np.array_equal(by_three_factorisations(w, scale, h, 0.05), expected)
    started_apart = (codes != expected) & (ties < 1e-3)
    wrong = (codes != expected).any(axis=1) & ~started_apart.any(axis=1)
    assert not wrong.any()
    assert np.mean(codes != expected) < 0.01
    assert loss(codes, scale, w, h) == pytest.approx(loss(expected, scale, w, h), rel=2e-3)


def test_positive_scales_are_no_other_case(pool: ThreadPoolExecutor) -> None:
    x, w = inputs(512, 64), weight(64, 64)
    h = x.T @ x
    scale = np.abs(weighted_scales(w, np.diagonal(h), 32))
    factor = factorize(of(h), 0.01)
    assert factor is not None
    expected, ties = by_elimination(w, scale, h, 0.01)
    codes = gptq(w, scale, factor, pool)
    assert not ((codes != expected).any(axis=1) & ~((codes != expected) & (ties < 1e-3)).any(axis=1)).any()


def test_few_columns_come_close_to_the_best_codes_there_are(pool: ThreadPoolExecutor) -> None:
    """Enumerated: GPTQ is greedy, so not always the best, but never worse than rounding by much and mostly better."""
    grid = np.array(list(itertools.product(CODES, repeat=4)))
    x, w = inputs(64, 4), weight(40, 4)
    h = x.T @ x
    scale = np.full((40, 1), 0.02, np.float32)
    factor = factorize(of(h), 1e-4)
    assert factor is not None
    codes, rounded = gptq(w, scale, factor, pool), nearest_codes(w, scale)
    best = np.zeros(40)
    for row in range(40):
        d = grid * 0.02 - w[row]
        best[row] = ((d @ h) * d).sum(axis=1).min()
    ours = np.array([loss(codes[r : r + 1], scale[r : r + 1], w[r : r + 1], h) for r in range(40)])
    plain = np.array([loss(rounded[r : r + 1], scale[r : r + 1], w[r : r + 1], h) for r in range(40)])
    assert (ours >= best * (1 - 1e-3)).all()
    assert np.mean(ours <= best * 1.001) > 0.5
    assert ours.sum() < 0.6 * plain.sum()
    assert ours.sum() < 1.5 * best.sum()


def test_threads_do_not_show() -> None:
    x, w = inputs(400, 256), weight(1000, 256)
    h = x.T @ x
    scale, factor = weighted_scales(w, np.diagonal(h), 32), factorize(of(h), 0.01)
    assert factor is not None
    found = []
    for count in (1, 3):
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            found.append(gptq(w, scale, factor, threads))
    assert np.array_equal(*found)


def test_one_factor_is_the_inverse_of_the_other() -> None:
    x = inputs(300, 48)
    h = x.T @ x
    factor = factorize(of(h), 0.01)
    assert factor is not None
    assert torch.equal(factor.upper.triu(), factor.upper)
    mean = np.diagonal(h).mean(dtype=np.float64)
    damped = (h.astype(np.float64) / mean + 0.01 * np.eye(48))[factor.order.numpy()][:, factor.order.numpy()]
    u = factor.upper.double().numpy()
    assert np.allclose(u.T @ u @ damped, np.eye(48), atol=1e-3)


def test_factorising_takes_the_memory_of_h() -> None:
    """The widest H of 31B has 1.8 GB; a copy would double it, and what BLAS keeps beside it was 0.65 here at most."""
    h = np.eye(2560, dtype=np.float32) + 1 / 2560
    factorize(of(h[:1024, :1024]), 0.01)  # what is loaded when first used
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _memory("VmRSS")
    assert factorize(torch.from_numpy(h), 0.01) is not None
    assert (_memory("VmHWM") - before) * 1024 < 0.9 * h.nbytes


def _memory(which: str) -> int:
    """Return a figure of this process, KiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1])


@pytest.mark.parametrize(("share", "of_inputs"), [(0.5, True), (1.0, True), (1.0, False)])
def test_a_weight_that_aims_is_the_ridge_regression_of_the_originals_outputs(
    share: float, pool: ThreadPoolExecutor, *, of_inputs: bool
) -> None:
    x, w = inputs(400, 64), weight(300, 64)
    x0 = x + 0.1 * inputs(400, 64, seed=5)
    h, off = x.T @ x, (x0 - x).T @ x
    factor = factorize(of(h), 0.01)
    assert factor is not None
    found = w.copy()
    aim(found, of(off if of_inputs else w @ off), factor, share, pool, of_inputs=of_inputs)
    wide, ridge = x.astype(np.float64), 0.01 * np.diagonal(h).mean(dtype=np.float64)
    rows = np.concatenate([wide, ridge**0.5 * np.eye(64)])
    wanted = np.concatenate([x0.astype(np.float64) @ w.T, ridge**0.5 * w.T])
    whole = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    assert np.abs(found - ((1 - share) * w + share * whole)).max() < 1e-5 * np.abs(w).max() * 64


def test_a_weight_on_the_originals_own_inputs_stays(pool: ThreadPoolExecutor) -> None:
    factor = factorize(torch.eye(64), 0.01)
    assert factor is not None
    found = weight(8, 64)
    aim(found, torch.zeros(64, 64), factor, 0.5, pool, of_inputs=True)
    assert np.array_equal(found, weight(8, 64))


@pytest.mark.parametrize("broken", ["nothing", "nan", "inf"])
def test_what_has_no_factor_says_so(broken: str) -> None:
    h = np.eye(16, dtype=np.float32)
    h[3, 3] = {"nothing": 1.0, "nan": np.nan, "inf": np.inf}[broken]
    assert factorize(of(h * (broken != "nothing") if broken == "nothing" else h), 0.01) is None


def test_fewer_tokens_than_columns_have_a_factor() -> None:
    x = inputs(4, 64)
    factor = factorize(of(x.T @ x), 0.01)
    assert factor is not None
    assert factor.upper.isfinite().all()


def test_a_singular_sum_is_damped_more_and_says_so() -> None:
    """Rounding in float32 leaves this one negative by more than the damping asked for makes up."""
    h = np.ones((1100, 1100), np.float32)
    h[np.triu_indices(1100, 1)] = h[np.tril_indices(1100, -1)] = 1.05
    factor = factorize(of(h), 0.01)
    assert factor is not None
    assert factor.damp == pytest.approx(0.1)
    harder = factorize(of(h), 0.1)
    assert harder is not None
    assert torch.equal(factor.upper, harder.upper)  # the first try left no trace


def test_a_channel_without_inputs_keeps_its_weights(pool: ThreadPoolExecutor) -> None:
    x, w = inputs(300, 64), weight(8, 64)
    x[:, 5] = 0
    h = x.T @ x
    scale, factor = weighted_scales(w, np.diagonal(h), 32), factorize(of(h), 0.01)
    assert factor is not None
    codes = gptq(w, scale, factor, pool)
    assert np.array_equal(codes[:, 5], nearest_codes(w, scale)[:, 5])
    assert codes[:, 5].any()


def test_damping_falls_as_tokens_rise() -> None:
    assert damping(0, 100) == damping(100, 100) == pytest.approx(0.3)
    assert damping(800, 100) == damping(10**6, 100) == pytest.approx(0.01)
    assert damping(283, 100) == pytest.approx((0.3 * 0.01) ** 0.5, rel=0.01)
    found = [damping(tokens, 100) for tokens in range(100, 801, 50)]
    assert found == sorted(found, reverse=True)
