"""lattice: grids with known codes are found again; anything else is told apart."""

from math import gcd

import pytest
import torch
from helpers.tiles import TORCH, normal, run, words
from hypothesis import given
from hypothesis import strategies as st

from g4convert.quantization import Method, Scheme
from g4convert.quantization.tiles import CpuTiles

LATTICE = Scheme(4, 32, Method.LATTICE)


def codes_for(kind: str, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Codes int64 [groups, 32] as that kind of training leaves them."""
    w = torch.randn(groups, 32, generator=generator)
    peak = w.abs().amax(1, keepdim=True)
    match kind:
        case "signed max over -8":
            signed = torch.where(w.amax(1, keepdim=True) == peak, peak, -peak)
            codes = (w / (signed / -8)).round()
        case "absmax over 7":
            codes = (w / (peak / 7)).round()
        case "absmax over 7.5":
            codes = (w / (peak / 7.5)).round()
        case "learned clip, tight":
            codes = (w / (peak * 0.8 / 7.5)).round()
        case _:  # the peak stays under level 8
            level = torch.randint(2, 8, (groups, 1), generator=generator)
            codes = (w / (peak / level)).round()
    return codes.clamp(-8, 7).long()


KINDS = [
    "signed max over -8",
    "absmax over 7",
    "absmax over 7.5",
    "learned clip, tight",
    "learned clip, loose",
]


def steps(groups: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Steps fp32 [groups, 1] that `dtype` holds, of either sign."""
    size = torch.exp(torch.randn(groups, 1, generator=generator)) * 0.003
    sign = torch.randint(0, 2, (groups, 1), generator=generator) * 2 - 1
    return (size * sign).to(dtype).float()


def canonical(codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return the same grid with the largest step, which is positive unless a code is -8."""
    divisor = torch.tensor([gcd(*row) or 1 for row in codes.tolist()]).unsqueeze(1)
    codes = codes // divisor
    flip = (step < 0) & (codes.amin(1, keepdim=True) > -8)
    return torch.where(flip, -codes, codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step_dtype", TORCH.values())
@pytest.mark.parametrize("dtype", TORCH.values())
def test_codes_are_found_again(kind: str, step_dtype: torch.dtype, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    groups = 1500
    codes = codes_for(kind, groups, generator)
    step = steps(groups, step_dtype, generator)
    weight = (codes * step).to(dtype).reshape(groups // 4, 128)
    result = run(weight, LATTICE)
    assert torch.equal(result.codes.reshape(groups, 32).long(), canonical(codes, step))
    assert result.stats.lattice_groups == groups
    same = (result.codes.float() * result.scale.float()).to(dtype).reshape(weight.shape) == weight
    exact = same.reshape(groups, 32).all(1)
    assert result.stats.exact_groups == int(exact.sum())
    if step_dtype is torch.bfloat16:
        assert result.stats.exact_groups == groups
    assert result.stats.relative_error < 1e-5


@given(
    codes=st.lists(st.integers(-8, 7), min_size=32, max_size=32),
    mantissa=st.integers(128, 255),
    exponent=st.integers(-40, 10),
    sign=st.sampled_from([-1, 1]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_any_bf16_step_gives_the_source_back(
    codes: list[int], mantissa: int, exponent: int, sign: int, dtype: torch.dtype
) -> None:
    weight = (torch.tensor([codes]) * float(sign * mantissa) * 2.0**exponent).to(dtype)
    result = run(weight, LATTICE)
    assert torch.equal((result.codes.float() * result.scale.float()).to(dtype).reshape(1, 32), weight)
    assert (result.stats.lattice_groups, result.stats.exact_groups) == (1, 1)


def test_fp16_denormals_are_on_a_grid_too() -> None:
    codes = torch.arange(-8, 24).clamp(-8, 7).unsqueeze(0)
    weight = (codes * 3 * 2.0**-24).to(torch.float16)
    result = run(weight, LATTICE)
    assert torch.equal(result.codes.reshape(1, 32).long(), codes)
    assert result.stats.exact_groups == 1


def test_other_groups_are_those_of_mse() -> None:
    generator = torch.Generator().manual_seed(3)
    on_grid = (codes_for(KINDS[0], 96, generator) * steps(96, torch.float16, generator)).to(torch.bfloat16)
    off_grid = normal(96, 32)
    mixed = torch.stack([on_grid, off_grid], 1).reshape(48, 128)
    result, searched = run(mixed, LATTICE), run(mixed, Scheme(4, 32, Method.MSE))
    assert result.stats.lattice_groups == 96
    assert torch.equal(result.codes[:, 1::2], searched.codes[:, 1::2])
    assert torch.equal(result.scale[:, 1::2], searched.scale[:, 1::2])
    rows, dtype = words(mixed)
    assert CpuTiles().lattice_share(rows, dtype, 32) == 0.5


@pytest.mark.parametrize(("dtype", "units"), [(torch.bfloat16, 4), (torch.float16, 4), (torch.float32, 16)])
def test_a_weight_a_few_units_off_leaves_the_grid(dtype: torch.dtype, units: int) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = (codes_for(KINDS[1], 64, generator) * steps(64, torch.bfloat16, generator)).to(dtype)
    place = weight.abs().argmax(1, keepdim=True)
    moved = weight.scatter(1, place, weight.gather(1, place) * (1 + units * torch.finfo(dtype).eps))
    assert run(weight, LATTICE).stats.lattice_groups == 64
    assert run(moved, LATTICE).stats.lattice_groups <= 3  # a group of few codes may have another step


def test_a_group_of_two_grids_is_on_none() -> None:
    generator = torch.Generator().manual_seed(9)
    weight = (codes_for(KINDS[0], 64, generator) * steps(64, torch.bfloat16, generator)).to(torch.bfloat16)
    assert run(weight.reshape(32, 64), Scheme(4, 64, Method.LATTICE)).stats.lattice_groups == 0


def test_both_ends_at_8_need_a_code_there_is_not() -> None:
    codes = torch.tensor([[-8, 8, 7, 5, 3, 1] + [0] * 26])
    assert run((codes * 0.5).to(torch.bfloat16), LATTICE).stats.lattice_groups == 0


def test_positive_scales_leave_out_grids_that_need_a_negative_one() -> None:
    codes = torch.tensor([[8, 7, 5, 3, 1] + [0] * 27, [-8, 7, 5, 3, 1] + [0] * 27])
    weight = (codes * 0.5).to(torch.bfloat16)
    assert run(weight, LATTICE).stats.lattice_groups == 2
    positive = run(weight, Scheme(4, 32, Method.LATTICE, signed=False))
    assert positive.stats.lattice_groups == 1
    assert bool((positive.scale > 0).all())
