"""The compiled loop of the weights level against float64 sums and compressed-tensors' own decoding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from helpers.conversions import quantized
from hypothesis import example, given
from hypothesis import strategies as st

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Severity
from g4convert.verification.weights import measured as module
from g4convert.verification.weights import oracle as weights_oracle
from g4convert.verification.weights import recorded as weights_recorded
from g4convert.verification.weights.level import check_weights
from g4convert.verification.weights.measured import Measured, RowTile, measure_tile
from g4convert.verification.weights.oracle import error_of
from g4convert.verification.weights.recorded import RECORDED, Form

SUMS = ("signal", "error", "removable", "along", "plain_error", "plain_removable", "plain_along")


def exactly(codes: torch.Tensor, bits: int, *, points: torch.Tensor | None = None) -> RowTile:
    """Codes int8 [r, k] of a scale a row, and a source that is what compressed-tensors makes of them."""
    scale = torch.ones(len(codes), 1)
    zeros = torch.zeros(len(codes), 1) if points is None else points
    packed = pack_to_int32(codes, bits)
    dense = unpack_from_int32(packed, bits, codes.shape).float() - zeros
    return RowTile(
        words=packed.numpy(),
        scale=scale.numpy(),
        zeros=np.empty((0, 0), np.float32) if points is None else points.numpy(),
        source=dense.numpy().view(np.uint32),
        num_bits=bits,
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_byte_is_decoded_as_compressed_tensors_does(bits: int) -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(torch.int32)[None]
    codes = unpack_from_int32(stored, bits, torch.Size((1, 256 * 8 // bits)))
    found = measure_tile(exactly(codes, bits))
    assert found.signal == float(codes.double().square().sum())
    assert found.error == 0


@example(r=32, k=256, bits=4, seed=0)  # as many weights as 64 groups of 128 have
@given(r=st.integers(1, 70), k=st.integers(1, 300), bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_rows_of_any_length(r: int, k: int, bits: int, seed: int) -> None:
    half, random = 1 << (bits - 1), torch.Generator().manual_seed(seed)
    codes = torch.randint(-half, half, (r, k), generator=random, dtype=torch.int8)
    points = torch.randint(-half, half, (r, 1), generator=random).float() if seed % 2 else None
    found = measure_tile(exactly(codes, bits, points=points))
    assert (found.error, found.weights, found.groups) == (0, r * k, r)
    assert found.zero_codes == int((codes == 0).sum())
    assert found.saturated_codes == int(((codes == -half) | (codes == half - 1)).sum())


def plainly_rounded(source: torch.Tensor, g: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes int8 [r, k] and scales f32 [r, groups] of plain rounding, in float64 but for the scales."""
    half = (1 << (bits - 1)) - 0.5
    groups = source.double().reshape(len(source), -1, g)
    scale = (groups.abs().amax(-1).float() / half).bfloat16().float()
    codes = (groups / scale[..., None].double()).round().clamp(-half - 0.5, half - 0.5)
    return codes.reshape(source.shape).to(torch.int8), scale


@given(
    g=st.sampled_from([16, 32, 128, 264]),
    bits=st.integers(2, 8),
    changed=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 10**6),
)
def test_plain_rounding_is_the_same_whether_it_is_stored_or_not(g: int, bits: int, changed: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    source = (torch.randn(40, 8 * g, generator=random) / 50).bfloat16()
    codes, scale = plainly_rounded(source, g, bits)
    plain = (source.double() - (codes.reshape(40, -1, g) * scale[..., None]).reshape(40, -1).double()).square().sum()
    stored, other = codes.clone(), scale.clone()
    for number in range(changed):  # a code that is not the nearest, and a scale that is not the plain one
        stored[7 * number, number] += 1 if stored[7 * number, number] < 0 else -1
        other[3 * number, 2] *= 1.25
    tile = RowTile(
        words=pack_to_int32(stored, bits).numpy(),
        scale=other.numpy(),
        zeros=np.empty((0, 0), np.float32),
        source=source.view(torch.int16).numpy().view(np.uint16),
        num_bits=bits,
    )
    found = measure_tile(tile)
    assert found.plain_error == pytest.approx(float(plain), rel=1e-4)
    assert found.plain_zero == pytest.approx(int((codes == 0).sum()), abs=3 + codes.numel() // 2000)
    assert (found.error > found.plain_error) is (changed > 0)
    assert changed or found.error == found.plain_error


def tile_of(  # noqa: PLR0913 - a tile has as many sides
    rows: int, groups: int, g: int, bits: int, *, zeros: bool, dtype: str, seed: int
) -> RowTile:
    """Random codes and scales, and a source near what they stand for."""
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    codes = rng.integers(-half, half, (rows, groups * g))
    scale = rng.normal(size=(rows, groups)).astype(np.float32)
    points = rng.integers(-half, half, (rows, groups)).astype(np.float32) if zeros else np.empty((0, 0), np.float32)
    taken_off = codes.reshape(rows, groups, g) - (points[..., None] if zeros else 0)
    dense = (taken_off * scale[..., None]).reshape(rows, -1) + rng.normal(size=(rows, groups * g)) * 0.3
    source = torch.from_numpy(dense.astype(np.float32))
    if dtype == "bf16":
        bits_of = source.bfloat16().view(torch.int16).numpy().view(np.uint16)
    else:
        bits_of = source.numpy().view(np.uint32)
    packed = pack_to_int32(torch.from_numpy(codes.astype(np.int8)), bits).numpy()
    return RowTile(words=packed, scale=scale, zeros=points, source=bits_of, num_bits=bits)


TILES = st.builds(
    tile_of,
    rows=st.sampled_from([1, 2, 3, 9, 70]),
    groups=st.integers(1, 5),
    g=st.sampled_from([8, 16, 32, 64, 128, 24, 5, 20, 136, 264]),
    bits=st.integers(2, 8),
    zeros=st.booleans(),
    dtype=st.sampled_from(["bf16", "fp32"]),
    seed=st.integers(0, 10**6),
)


@given(tile=TILES)
def test_the_error_is_that_of_what_compressed_tensors_dequantizes(tile: RowTile) -> None:
    error, signal = error_of(tile)
    found = measure_tile(tile)
    assert found.signal == pytest.approx(signal, rel=1e-5)
    assert found.error == pytest.approx(error, abs=1e-5 * signal)


@given(tile=TILES, cut=st.integers(1, 8))
def test_parts_of_a_tile_add_up(tile: RowTile, cut: int) -> None:
    at = min(cut, len(tile.words))
    total = Measured()
    for part in (slice(0, at), slice(at, None)):
        if len(tile.words[part]):
            zeros = tile.zeros[part] if tile.zeros.size else tile.zeros
            total += measure_tile(
                replace(tile, words=tile.words[part], scale=tile.scale[part], source=tile.source[part], zeros=zeros)
            )
    whole = measure_tile(tile)
    for name in Measured.__dataclass_fields__:
        expected = getattr(whole, name)
        assert getattr(total, name) == (pytest.approx(expected, rel=1e-12) if name in SUMS else expected), name


def test_what_is_no_number_stays_one() -> None:
    tile = tile_of(4, 2, 32, 4, zeros=False, dtype="fp32", seed=1)
    source = tile.source.copy()
    source[2, 5] = np.float32(np.nan).view(np.uint32)
    assert np.isnan(measure_tile(replace(tile, source=source)).relative_error)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_counted(bits: int) -> None:
    half, tile = 1 << (bits - 1), tile_of(7, 3, 32, bits, zeros=False, dtype="bf16", seed=2)
    codes = unpack_from_int32(torch.from_numpy(tile.words), bits, torch.Size((7, 96)))
    found = measure_tile(tile)
    assert found.zero_codes == int((codes == 0).sum())
    assert found.saturated_codes == int(((codes == -half) | (codes == half - 1)).sum())


@pytest.mark.parametrize("form", RECORDED)
def test_the_record_is_what_compressed_tensors_gives(form: Form) -> None:
    assert error_of(weights_recorded.tile_of(form)) == pytest.approx(RECORDED[form], rel=1e-12)


def test_a_decoder_that_is_off_leaves_another_error_than_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.severity for one in weights_recorded.check_recorded()} == {Severity.PASS}

    def off(tile: RowTile) -> Measured:
        return module.measure_tile(replace(tile, words=tile.words ^ np.int32(1 << 30)))

    monkeypatch.setattr(weights_recorded, "measure_tile", off)
    found = list(weights_recorded.check_recorded())
    assert len(found) == len(RECORDED)
    assert {(one.code, one.severity) for one in found} == {("weights.decoder", Severity.FAIL)}


def test_a_decoder_that_disagrees_with_compressed_tensors_is_found(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(moe, tmp_path / "out")

    def off(tile: RowTile) -> Measured:
        return module.measure_tile(replace(tile, words=tile.words ^ np.int32(1 << 30)))

    monkeypatch.setattr(weights_oracle, "measure_tile", off)
    found = [
        one
        for one in check_weights(Checkpoint.open(tmp_path / "out"), Checkpoint.open(moe), workers=1)
        if one.severity is Severity.FAIL
    ]
    assert {one.code for one in found} == {"weights.decoder"}
