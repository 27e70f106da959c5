"""The compiled loop of the weights level against float64 sums and compressed-tensors' own decoding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from helpers.conversions import quantized
from hypothesis import given
from hypothesis import strategies as st

from g4convert.checkpoint.directory import Checkpoint
from g4convert.report import Severity
from g4convert.verification.weights import measured as module
from g4convert.verification.weights import oracle as weights_oracle
from g4convert.verification.weights import recorded as weights_recorded
from g4convert.verification.weights.group_sums import decode
from g4convert.verification.weights.level import check_weights
from g4convert.verification.weights.measured import Measured, Tile, measure_tile
from g4convert.verification.weights.oracle import error_of
from g4convert.verification.weights.recorded import RECORDED, Form

SUMS = ("signal", "error", "removable", "plain_error", "plain_removable")


@pytest.mark.parametrize("bits", [4, 8])
def test_every_byte_is_decoded_as_compressed_tensors_does(bits: int) -> None:
    stored = np.arange(256, dtype=np.uint8)
    k = stored.size * 8 // bits
    codes = np.empty(k, np.float32)
    decode(stored, bits, codes)
    theirs = unpack_from_int32(torch.from_numpy(stored.view(np.int32))[None], bits, torch.Size((1, k)))
    assert codes.tolist() == theirs[0].tolist()


@given(k=st.integers(1, 40), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_rows_that_do_not_fill_their_last_word(k: int, bits: int, seed: int) -> None:
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (1, k), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    decoded = np.empty(k, np.float32)
    decode(pack_to_int32(codes, bits).numpy().view(np.uint8)[0], bits, decoded)
    assert decoded.tolist() == codes[0].tolist()


def tile_of(  # noqa: PLR0913 - a tile has as many sides
    rows: int, groups: int, g: int, bits: int, *, zeros: bool, dtype: str, seed: int
) -> Tile:
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
    return Tile(words=packed, scale=scale, zeros=points, source=bits_of, num_bits=bits)


TILES = st.builds(
    tile_of,
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    g=st.sampled_from([8, 16, 32, 64, 128, 24]),
    bits=st.sampled_from([4, 8]),
    zeros=st.booleans(),
    dtype=st.sampled_from(["bf16", "fp32"]),
    seed=st.integers(0, 10**6),
)


@given(tile=TILES)
def test_the_error_is_that_of_what_compressed_tensors_dequantizes(tile: Tile) -> None:
    error, signal = error_of(tile)
    found = measure_tile(tile)
    assert found.signal == pytest.approx(signal, rel=1e-5)
    assert found.error == pytest.approx(error, abs=1e-5 * signal)


@given(tile=TILES, cut=st.integers(1, 8))
def test_parts_of_a_tile_add_up(tile: Tile, cut: int) -> None:
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


def test_codes_are_counted() -> None:
    tile = tile_of(7, 3, 32, 4, zeros=False, dtype="bf16", seed=2)
    codes = unpack_from_int32(torch.from_numpy(tile.words), 4, torch.Size((7, 96)))
    found = measure_tile(tile)
    assert found.zero_codes == int((codes == 0).sum())
    assert found.saturated_codes == int(((codes == -8) | (codes == 7)).sum())


@pytest.mark.parametrize("form", RECORDED)
def test_the_record_is_what_compressed_tensors_gives(form: Form) -> None:
    assert error_of(weights_recorded.tile_of(form)) == pytest.approx(RECORDED[form], rel=1e-12)


def test_a_decoder_that_is_off_leaves_another_error_than_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.severity for one in weights_recorded.check_recorded()} == {Severity.PASS}

    def off(tile: Tile) -> Measured:
        return module.measure_tile(replace(tile, words=tile.words ^ np.int32(1 << 30)))

    monkeypatch.setattr(weights_recorded, "measure_tile", off)
    found = list(weights_recorded.check_recorded())
    assert len(found) == len(RECORDED)
    assert {(one.code, one.severity) for one in found} == {("weights.decoder", Severity.FAIL)}


def test_a_decoder_that_disagrees_with_compressed_tensors_is_found(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(moe, tmp_path / "out")

    def off(tile: Tile) -> Measured:
        return module.measure_tile(replace(tile, words=tile.words ^ np.int32(1 << 30)))

    monkeypatch.setattr(weights_oracle, "measure_tile", off)
    found = [
        one
        for one in check_weights(Checkpoint.open(tmp_path / "out"), Checkpoint.open(moe), workers=1)
        if one.severity is Severity.FAIL
    ]
    assert {one.code for one in found} == {"weights.decoder"}
