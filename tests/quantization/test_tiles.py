"""Properties of every method: odd weights, refusals, the same bits on torch, in threads and for any tiling."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiles import TORCH, Result, normal, run, words
from hypothesis import given
from hypothesis import strategies as st

from g4convert.errors import InputError, UsageError
from g4convert.quantization import Method, NonFiniteError, Scheme, Tiles
from g4convert.quantization.tiles import CpuTiles
from g4convert.quantization.torch_tiles import TorchTiles
from g4convert.tensors import DType

TILED = [method for method in Method if method not in {Method.IMATRIX, Method.GPTQ, Method.BEST}]
"""Methods that need no inputs: a tile is quantized by itself."""
SCHEMES = [
    Scheme(bits, group_size, method, signed)
    for bits, group_size, method, signed in product((4, 8), (32, None), TILED, (True, False))
    if bits == 4 or method is not Method.LATTICE
]
DEVICES = [CpuTiles(), TorchTiles("cpu")]


def odd_rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows [10, 64]: zeros, negative zeros, denormals, constants, one weight, the largest numbers, both peaks."""
    info = torch.finfo(dtype)
    w = torch.zeros(10, 64, dtype=dtype)
    w[1] = -0.0
    w[2] = info.smallest_normal * info.eps
    w[3] = torch.linspace(-1, 1, 64).to(dtype) * info.smallest_normal
    w[4] = 0.37
    w[5] = -0.37
    w[6, 5] = 1.0
    w[7] = torch.linspace(-0.9, 0.9, 64).to(dtype) * info.max
    w[8, :2] = torch.tensor([1.0, -1.0])
    w[9, 1] = info.smallest_normal * info.eps
    return w


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", TORCH.values())
def test_odd_weights_give_finite_scales_and_codes_near_them(dtype: torch.dtype, scheme: Scheme) -> None:
    weight = odd_rows(dtype)
    result = run(weight, scheme)
    assert bool(torch.isfinite(result.scale).all())
    assert bool((result.scale != 0).all())
    assert bool((result.codes[:2] == 0).all())
    assert bool((result.scale[:2] == 2.0**-23).all())
    values = torch.nan_to_num(result.values).reshape(weight.shape)
    peak = weight.double().abs().amax(1, keepdim=True)
    assert bool(((values - weight.double()).abs() <= torch.maximum(peak * 0.13, torch.tensor(1e-12))).all())
    assert np.isfinite(result.stats.relative_error)


def test_a_scale_that_only_bf16_rounds_to_zero_becomes_epsilon() -> None:
    weight = torch.full((1, 32), 2.0**-149)
    for method in TILED:
        result = run(weight, Scheme(method=method))
        assert result.scale.item() == 2.0**-23
        assert not bool(result.codes.any())


@pytest.mark.parametrize("tiles", DEVICES, ids=["numba", "torch"])
@pytest.mark.parametrize("dtype", TORCH.values())
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_weight_that_is_not_finite_is_named(value: float, dtype: torch.dtype, tiles: Tiles) -> None:
    weight = normal(70, 64, dtype=dtype)
    weight[66, 3] = weight[66, 33] = weight[67, 1] = value
    for method in TILED:
        with pytest.raises(NonFiniteError, match=r"weight \[66, 3\] is NaN or infinite") as caught:
            Result(tiles, weight, Scheme(method=method))
        assert (caught.value.row, caught.value.column) == (66, 3)
    rows, dtype_name = words(weight)
    with pytest.raises(InputError):
        tiles.lattice_share(rows, dtype_name, 32)


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 5),
    dtype=st.sampled_from(list(TORCH.values())),
    scheme=st.sampled_from(SCHEMES),
    group_size=st.sampled_from([8, 32, 64, 128, 192, None]),
)
def test_torch_gives_the_same_bits(
    seed: int, n: int, dtype: torch.dtype, scheme: Scheme, group_size: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = normal(n, 768, seed=seed, dtype=torch.float32)
    weight[:, 384:] = torch.randint(-8, 8, (n, 384), generator=generator) * weight[:, :1]
    weight[0, 192:256] = 0
    weight[:, 256:288] *= 1e-6
    scheme = replace(scheme, group_size=group_size)
    mine, other = (Result(tiles, weight.to(dtype), scheme) for tiles in DEVICES)
    assert np.array_equal(mine.packed, other.packed)
    assert np.array_equal(mine.scale_bits, other.scale_bits)
    assert mine.stats == other.stats
    rows, dtype_name = words(weight.to(dtype))
    shares = [tiles.lattice_share(rows, dtype_name, group_size) for tiles in DEVICES]
    assert shares[0] == shares[1]


@pytest.mark.parametrize("dtype", TORCH.values())
def test_torch_gives_the_same_bits_on_odd_weights(dtype: torch.dtype) -> None:
    for scheme in SCHEMES:
        mine, other = (Result(tiles, odd_rows(dtype), scheme) for tiles in DEVICES)
        assert np.array_equal(mine.packed, other.packed)
        assert np.array_equal(mine.scale_bits, other.scale_bits)


@pytest.mark.parametrize("method", TILED)
def test_threads_and_tilings_give_the_same_bits(method: Method) -> None:
    weight, scheme = normal(48, 704), Scheme(method=method)
    whole = run(weight, scheme)
    for height in (1, 5, 16):
        parts = [weight[i : i + height] for i in range(0, 48, height)]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda part: run(part, scheme), parts))
        assert np.array_equal(np.concatenate([result.packed for result in results]), whole.packed)
        assert np.array_equal(np.concatenate([result.scale_bits for result in results]), whole.scale_bits)


@pytest.mark.parametrize("tiles", DEVICES, ids=["numba", "torch"])
def test_rows_may_be_read_only_and_unaligned(tiles: Tiles) -> None:
    weight = normal(4, 64)
    rows, dtype = words(weight)
    memory = b"x" + rows.tobytes()
    mapped = np.frombuffer(memory, np.uint8)[1:].view(np.uint16).reshape(rows.shape)
    assert not mapped.flags.writeable
    assert not mapped.flags.aligned
    packed, scale = np.zeros((4, 8), np.int32), np.zeros((4, 2), np.uint16)
    tiles.quantize(mapped, dtype, Scheme(), packed, scale)
    assert np.array_equal(packed, run(weight, Scheme()).packed)


@pytest.mark.parametrize("tiles", DEVICES, ids=["numba", "torch"])
def test_no_rows_are_no_work(tiles: Tiles) -> None:
    rows = np.zeros((0, 64), np.uint16)
    packed, scale = np.zeros((0, 8), np.int32), np.zeros((0, 2), np.uint16)
    assert tiles.quantize(rows, DType.BF16, Scheme(), packed, scale).weights == 0
    assert tiles.lattice_share(rows, DType.BF16, 32) == 0.0


@pytest.mark.parametrize("tiles", DEVICES, ids=["numba", "torch"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rows": np.zeros((4, 64), np.float32)}, "rows of BF16 must be contiguous uint16"),
        ({"rows": np.zeros((4, 128), np.uint16)[:, ::2]}, "rows of BF16 must be contiguous"),
        ({"dtype": DType.I32}, "rows of I32"),
        ({"packed": np.zeros((4, 9), np.int32)}, r"packed must be contiguous int32 \(4, 8\)"),
        ({"packed": np.zeros((8, 8), np.int32)[::2]}, "packed must be contiguous"),
        ({"scale": np.zeros((4, 2), np.float32)}, "scale must be contiguous uint16"),
        ({"scheme": Scheme(4, 48)}, "48 does not divide a row of 64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tiles: Tiles, change: dict[str, Any], match: str) -> None:
    arguments = {
        "rows": np.zeros((4, 64), np.uint16),
        "dtype": DType.BF16,
        "scheme": Scheme(),
        "packed": np.zeros((4, 8), np.int32),
        "scale": np.zeros((4, 2), np.uint16),
    }
    with pytest.raises(ValueError, match=match):
        tiles.quantize(**(arguments | change))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_bits": 5}, "num_bits is 5; 4 or 8"),
        ({"group_size": 12}, "group_size is 12; it must be a positive multiple of 8"),
        ({"group_size": 0}, "group_size is 0"),
        ({"num_bits": 8, "method": Method.LATTICE}, "method lattice finds 4-bit grids"),
    ],
)
def test_schemes_that_cannot_be_written_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Scheme(**arguments)


def test_the_values_import_neither_numpy_nor_numba() -> None:
    program = (
        "import sys, g4convert.quantization as q; print(q.Scheme().words(64), {'numpy', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "8 set()\n"
