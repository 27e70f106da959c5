"""The table of tiles, what the kernels take, and where they run: no GPU, and no Triton."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_args

import pytest
import torch

from g4convert.errors import EnvironmentFault, UnsupportedError, UsageError
from g4convert.forward import experts, modules
from g4convert.forward.modules import PackedWeight
from g4convert.forward.triton import packed, tiles
from g4convert.forward.triton.tiles import Kind, Shape, Tile

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = Shape("down", 128, 2816, 704, 32, 4)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 103, 120, 121])
def test_every_size_has_a_tile(capability: int) -> None:
    for kind, rows, wide in itertools.product(get_args(Kind), (1, 8, 64, 1 << 14), (False, True)):
        tile = tiles.tile_for(Shape(kind, 128, 704, 2816, 32, rows, wide), capability)
        assert tile.block_k >= 64
        assert tile.block_n <= 704


def test_more_rows_take_taller_tiles_and_both_products_of_a_layer_the_same() -> None:
    for architecture in tiles.ARCHITECTURES:
        heights = [
            [tiles.tile_for(Shape(kind, 128, 704, 2816, 32, 1 << i), architecture).block_m for i in range(13)]
            for kind in ("gate_up", "down")
        ]
        assert heights[0] == sorted(heights[0])
        assert heights[0] == heights[1], "or pairs would be sorted twice"


def test_a_gpu_between_two_takes_the_older_one() -> None:
    assert [tiles.architecture(c) for c in (75, 80, 86, 89, 90, 103, 120, 130)] == [80, 80, 80, 89, 90, 100, 120, 120]


def test_a_tile_is_never_wider_than_the_weight() -> None:
    assert Tile(16, 128, 256, 8, 2).within(20).block_n == 16


def test_a_users_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Tile(16, 64, 128, 4, 5)
    tiles.save_table(tmp_path / "tiles.json", 90, {SHAPE: own}, {"card": "a card"})
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "tiles.json"))
    assert tiles.tile_for(SHAPE, 90) == own
    assert tiles.tile_for(SHAPE, 80) != own, "measured on another architecture"
    other = Shape("down", 128, 2816, 704, 32, 8)
    assert tiles.tile_for(other, 90) != own
    assert json.loads((tmp_path / "tiles.json").read_text())["card"] == "a card"


@pytest.mark.parametrize("text", ["", "[]", '{"capability": 90, "tiles": [{"kind": "down"}]}'])
def test_a_table_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    monkeypatch.setenv(tiles.VARIABLE, str(tmp_path / "t.json"))
    with pytest.raises(UsageError, match=r"t\.json: not a table of tiles"):
        tiles.tile_for(SHAPE, 90)


def weight(n: int = 32, k: int = 64, groups: int = 2, num_bits: int = 4, *, zeros: bool = False) -> PackedWeight:
    words = torch.zeros(n, k * num_bits // 32, dtype=torch.int32)
    zero_point = torch.zeros(n * num_bits // 32, groups, dtype=torch.int32) if zeros else None
    return PackedWeight(words, torch.ones(n, groups).bfloat16(), zero_point, k, num_bits)


def is_taken(w: PackedWeight) -> bool:
    return packed.fits_triton(w.words, w.scale, w.zero_point, k=w.k, num_bits=w.num_bits)


def test_what_the_kernels_take() -> None:
    assert is_taken(weight())
    assert is_taken(weight(groups=1))
    assert is_taken(weight(k=704, groups=22))
    assert not is_taken(weight(groups=4)), "groups of 16"
    assert not is_taken(weight(num_bits=8))
    assert not is_taken(weight(zeros=True))
    assert not is_taken(weight(n=8))
    assert not is_taken(weight(n=34, groups=1))


@pytest.mark.parametrize("other", [weight(num_bits=8), weight(zeros=True), weight(groups=4)])
def test_other_weights_go_to_the_reference(other: PackedWeight) -> None:
    x = torch.randn(3, 64)
    assert torch.equal(modules.fused_linear(x, other), modules.packed_linear(x, other))


def test_an_unknown_dtype_is_one_error_with_a_way_on() -> None:
    with pytest.raises(UnsupportedError, match=r"float64.*bfloat16, float16 and float32") as error:
        modules.fused_linear(torch.zeros(1, 64, dtype=torch.float64), weight())
    assert "--device cpu" in error.value.hint


@pytest.fixture
def asked_again() -> None:
    packed.check_device.cache_clear()


@pytest.mark.usefixtures("asked_again")
def test_no_triton_is_one_error_with_a_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match="need Triton, which is not installed") as error:
        modules.fused_linear(torch.zeros(1, 64), weight())
    assert "--device cpu" in error.value.hint


@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize(
    ("cuda", "capability", "triton", "message"),
    [
        ("13.0", (7, 5), "3.6.0", r"Old Card: compute capability 7\.5, the packed kernels need 8\.0"),
        ("13.0", (9, 0), "3.5.1+git1b0418a9", r"Triton 3\.5\.1\S*: the packed kernels need 3\.6"),
        (None, (9, 0), "3.6.0", "need an NVIDIA GPU"),
    ],
)
def test_a_gpu_that_cannot_is_one_error_with_a_way_on(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, capability: tuple[int, int], triton: str, message: str
) -> None:
    monkeypatch.setattr(packed, "find_spec", lambda _: object())
    monkeypatch.setattr(packed, "import_module", lambda _: SimpleNamespace(__version__=triton))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old Card")
    with pytest.raises(EnvironmentFault, match=message) as error:
        packed.check_device_and_dtype(torch.device("cuda", 0), torch.bfloat16)
    assert "--device cpu" in error.value.hint


def test_gpus_have_the_kernels() -> None:
    assert modules.LINEARS["cuda"] is modules.fused_linear
    assert experts.EXPERTS["cuda"] is experts.fused_experts
