"""minmax against compressed-tensors, and the plain fp64 reference that the other quantize tests use."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from helpers.tiles import TORCH, normal, run
from hypothesis import given
from hypothesis import strategies as st

from g4convert.quantization import Method, Scheme, TileStats


def compressed_tensors(weight: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes packed and scales, made by compressed-tensors in fp32 with the scale rounded to bf16 first."""
    args = QuantizationArgs(
        num_bits=scheme.num_bits,
        strategy=QuantizationStrategy.GROUP if scheme.group_size else QuantizationStrategy.CHANNEL,
        group_size=scheme.group_size,
    )
    w = weight.float()
    groups = w.unflatten(-1, (-1, scheme.group(w.shape[1])))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    rounded = scale.to(torch.bfloat16)
    codes = quantize(w, rounded.float(), zero, args, dtype=torch.int8)
    return pack_to_int32(codes, scheme.num_bits), rounded


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, int | None]:
    """A weight of a few groups, the first column of groups all zero, and its group size."""
    group_size = draw(st.sampled_from([8, 24, 32, 64, 128, None]))
    n, groups = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    spread = draw(st.sampled_from([1e-30, 1e-4, 1.0, 150.0, 1e6]))
    made = normal(n, groups * (group_size or 40), seed=draw(st.integers(0, 2**31)), dtype=torch.float32)
    made[0, : group_size or 40] = 0
    dtype = draw(st.sampled_from([kind for kind in TORCH.values() if kind is not torch.float16 or spread < 1e6]))
    return (made * spread).to(dtype), group_size


@given(drawn=weights(), num_bits=st.sampled_from([4, 8]))
def test_minmax_is_compressed_tensors(drawn: tuple[torch.Tensor, int | None], num_bits: int) -> None:
    weight, group_size = drawn
    scheme = Scheme(num_bits, group_size, Method.MINMAX)
    result = run(weight, scheme)
    packed, scale = compressed_tensors(weight, scheme)
    assert np.array_equal(result.packed, packed.numpy())
    assert np.array_equal(result.scale_bits, scale.view(torch.int16).numpy().view(np.uint16))


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("k", [1, 7, 13, 70, 4304])
def test_a_whole_row_of_any_length(k: int, num_bits: int) -> None:
    weight = normal(3, k, seed=k)
    scheme = Scheme(num_bits, None, Method.MINMAX)
    result = run(weight, scheme)
    packed, scale = compressed_tensors(weight, scheme)
    assert np.array_equal(result.packed, packed.numpy())
    assert torch.equal(result.scale[..., 0], scale)
    assert result.stats.zero_codes == int((result.codes == 0).sum())


def test_literal_bytes_of_1x8() -> None:
    weight = torch.tensor([[0.0, 1.0, -1.0, 2.0, 3.0, -7.5, 7.0, 0.5]], dtype=torch.bfloat16)
    result = run(weight, Scheme(4, 8, Method.MINMAX))  # the scale is 1, 0.5 is a tie and 7.5 goes to even, 8
    assert result.codes.flatten().tolist() == [0, 1, -1, 2, 3, -8, 7, 0]
    assert result.packed.astype(np.uint32).tolist() == [[0x8F0BA798]]
    assert result.scale_bits.tolist() == [[0x3F80]]


@given(
    seed=st.integers(0, 2**31),
    scheme=st.builds(
        Scheme,
        st.sampled_from([4, 8]),
        st.sampled_from([32, 128, None]),
        st.sampled_from([Method.MINMAX, Method.MSE]),
    ),
)
def test_stats_are_those_of_the_outputs(seed: int, scheme: Scheme) -> None:
    weight = normal(5, 384, seed=seed)
    result = run(weight, scheme)
    stats, codes = result.stats, result.codes
    assert stats.squared_error == pytest.approx(float(result.group_error().sum()), rel=1e-5)
    assert stats.squared_weight == pytest.approx(float(result.weight.square().sum()), rel=1e-5)
    assert stats.relative_error == pytest.approx(result.relative_error(), rel=1e-5)
    assert stats.zero_codes == int((codes == 0).sum())
    low, high = -scheme.code_max - 1, scheme.code_max
    assert stats.saturated_codes == int(((codes == low) | (codes == high)).sum())
    assert (stats.weights, stats.groups) == (weight.numel(), result.scale.numel())


def test_stats_add_up() -> None:
    weight = normal(8, 256)
    parts = [run(weight[i : i + 2], Scheme()).stats for i in range(0, 8, 2)]
    whole, joined = run(weight, Scheme()).stats, sum(parts, TileStats())
    assert joined.squared_error == pytest.approx(whole.squared_error, rel=1e-12)
    assert (joined.weights, joined.groups) == (whole.weights, whole.groups)
    assert (joined.zero_codes, joined.saturated_codes) == (whole.zero_codes, whole.saturated_codes)
