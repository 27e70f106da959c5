"""mse: how much it wins, that it never loses, and what it falls back to."""

import pytest
import torch
from helpers.tiles import Result, normal, run
from hypothesis import given
from hypothesis import strategies as st

from g4convert.quantization import Method, Scheme


def laplace(*shape: int) -> torch.Tensor:
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) - 0.5
    return (-0.02 * uniform.sign() * torch.log1p(-2 * uniform.abs())).to(torch.bfloat16)


def weighted(result: Result) -> torch.Tensor:
    """Squared error times the weight's magnitude, of each group: what the search minimizes."""
    return (result.weight.abs() * (result.values - result.weight).square()).sum(-1)


def gains(weight: torch.Tensor, scheme: Scheme) -> tuple[float, float]:
    """Change of the squared error against minmax in percent: times magnitude, and plain."""
    found = run(weight, scheme), run(weight, Scheme(scheme.num_bits, scheme.group_size, Method.MINMAX))
    times, plain = ([float(error(one).sum()) for one in found] for error in (weighted, Result.group_error))
    return 100 * (times[0] / times[1] - 1), 100 * (plain[0] / plain[1] - 1)


@pytest.mark.parametrize(
    ("group_size", "signed", "on_normal", "on_laplace"),
    [
        (32, True, (-39.4, -23.5), (-45.8, -21.3)),
        (64, True, (-29.0, -19.5), (-33.7, -17.5)),
        (128, True, (-22.5, -18.2), (-26.2, -17.3)),
        (None, True, (-27.0, -33.0), (-28.0, -35.0)),
        (32, False, (-29.0, -15.0), (-32.5, -12.4)),
        (64, False, (-18.0, -11.0), (-19.7, -9.0)),
        (128, False, (-12.7, -10.3), (-13.3, -9.0)),
    ],
)
def test_wins_over_minmax(
    group_size: int | None,
    signed: bool,  # noqa: FBT001 - drawn from the table above
    on_normal: tuple[float, float],
    on_laplace: tuple[float, float],
) -> None:
    scheme = Scheme(4, group_size, Method.MSE, signed)
    for weight, least in ((normal(256, 2816), on_normal), (laplace(256, 2816), on_laplace)):
        times, plain = gains(weight, scheme)
        assert times < least[0]
        assert plain < least[1]


@pytest.mark.parametrize(("group_size", "won"), [(32, (-25.0, -16.5)), (128, (-12.0, -8.0)), (None, (-1.2, -1.7))])
def test_wins_at_8_bits(group_size: int | None, won: tuple[float, float]) -> None:
    times, plain = gains(normal(128, 2816), Scheme(8, group_size))
    assert times < won[0]
    assert plain < won[1]


@pytest.mark.parametrize("group_size", [32, 128])
def test_is_near_the_best_scale_there_is(group_size: int) -> None:
    weight = normal(64, 512)
    result = run(weight, Scheme(4, group_size))
    w, h = result.weight, result.weight.abs()
    peak = w.abs().amax(-1, keepdim=True)
    best = torch.full_like(result.group_error(), torch.inf)
    for level in torch.linspace(5.5, 20, 300).tolist():
        for sign in (1, -1):
            scale = sign * peak / level
            for _ in range(3):
                codes = (w / scale).round().clamp(-8, 7)
                best = torch.minimum(best, (h * (codes * scale - w).square()).sum(-1))
                scale = (h * w * codes).sum(-1, keepdim=True) / (h * codes.square()).sum(-1, keepdim=True)
    assert float(weighted(result).sum()) < 1.02 * float(best.sum())


def test_a_large_weight_counts_for_more_than_many_small_ones() -> None:
    weight = normal(64, 128, dtype=torch.float32).clamp(-0.02, 0.02)
    weight[:, 77] = 0.14
    result = run(weight, Scheme(4, 128))
    kept = result.values[:, 0, 77] / 0.14
    assert float((kept - 1).abs().max()) < 0.07


@st.composite
def odd_weights(draw: st.DrawFn) -> torch.Tensor:
    """Weights of the shapes that fool a search: outliers, constants, few values, a grid, nearly nothing."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(4, 256, generator=generator)
    match draw(st.sampled_from(["outlier", "constant", "sparse", "grid", "ternary", "minmax grid", "normal"])):
        case "outlier":
            w[:, ::37] *= 100
        case "constant":
            w = w[:, :1].expand(4, 256)
        case "sparse":
            w = w * (torch.rand(4, 256, generator=generator) < 0.05)
        case "grid":
            w = (w * 3).round() * 0.37
        case "ternary":
            w = w.sign() * 0.1
        case "minmax grid":
            w = (w * 3).round().clamp(-7, 7) + 0.5
    scale = draw(st.sampled_from([1.0, 1e-38, 1e-25, 1e25]))
    return (w * scale).to(draw(st.sampled_from([torch.bfloat16, torch.float32])))


@given(
    weight=odd_weights(),
    num_bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([8, 32, 128, None]),
    signed=st.booleans(),
)
def test_never_worse_than_minmax_in_any_group(
    weight: torch.Tensor, num_bits: int, group_size: int | None, *, signed: bool
) -> None:
    searched = run(weight, Scheme(num_bits, group_size, Method.MSE, signed))
    base = run(weight, Scheme(num_bits, group_size, Method.MINMAX))
    assert bool((searched.group_error() <= base.group_error()).all())


@given(weight=odd_weights(), method=st.sampled_from([Method.MINMAX, Method.MSE]))
def test_codes_are_the_nearest_to_the_written_scale(weight: torch.Tensor, method: Method) -> None:
    result = run(weight, Scheme(4, 32, method))
    ratio = result.weight.float() / result.scale.float()
    assert torch.equal(result.codes.float(), ratio.round().clamp(-8, 7))


def test_a_positive_scale_where_asked_and_both_signs_else() -> None:
    weight = normal(64, 512)
    assert bool((run(weight, Scheme(4, 32, Method.MSE, signed=False)).scale > 0).all())
    negative = (run(weight, Scheme(4, 32, Method.MSE)).scale < 0).float().mean()
    assert 0.4 < float(negative) < 0.6


def test_tiny_and_huge_groups_keep_minmax() -> None:
    for size in (2.0**-120, 2.0**110):
        weight = normal(4, 128, dtype=torch.float32) * (size / 0.02)
        assert (run(weight, Scheme()).packed == run(weight, Scheme(method=Method.MINMAX)).packed).all()
