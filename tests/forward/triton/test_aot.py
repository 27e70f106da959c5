"""The kernels compiled for GPUs that are not here: that they compile, and what their machine code shows.

`--full` compiles each tile once, for the architecture where it is the narrowest fit, and every form of a weight for
one, the usual run a part of these. `G4CONVERT_AOT=all` compiles the whole table, as is done for a new Triton.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path

import pytest
from helpers.grids import one_in

pytest.importorskip("triton")

import kernel_aot as aot
from kernel_aot import Machine, Variant

from g4convert.forward.triton.tiles import ARCHITECTURES, Kind, Tile, shipped_tiles

BUDGET = {8: (3.0, 3.2), 16: (3.2, 3.6), 32: (3.9, 4.5), 64: (4.5, 5.6)}
"""Instructions a weight of the loop and of the whole program, by block_m: few rows are limited by memory."""

HOPPER_FEW_ROWS = 3.5
"""Most instructions with few rows; an H100 has room for 4.97 in the loop, others but the B200 for more."""

SMALL, WIDE = Tile(8, 64, 256, 2, 3), Tile(16, 32, 64, 4, 2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles anew, and leaves nothing in the home directory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(machine: Machine, variant: Variant, architecture: int) -> None:
    """Hold one kernel to the limits of its architecture."""
    tile = variant.tile
    assert machine.spills == 0
    assert machine.shared <= aot.SHARED_BYTES[architecture]
    assert machine.tensor_cores, "there is no product: Triton 3.6 for sm_100 makes an empty kernel of some tiles"
    threads = 32 * tile.num_warps
    words = tile.block_n * tile.block_k // 2 * (2 if variant.gated else 1)  # bytes of a step
    assert machine.wide_copies >= words / (16 * threads), "weights are not copied 16 bytes at a time"
    assert not machine.serialized, "each wgmma waits for the one before it"
    loop, whole = BUDGET[tile.block_m]
    assert machine.per_weight <= loop
    assert machine.whole <= whole
    if architecture == 90 and tile.block_m <= 32:
        assert machine.per_weight <= HOPPER_FEW_ROWS


PAIRS = [(architecture, variant) for architecture in ARCHITECTURES for variant in aot.variants(architecture)]
CHOSEN = {(80, "down", 16), (89, "gate_up", 64), (90, "gate_up", 8), (90, "gate_up", 64), (90, "down", 64)} | {
    (90, "linear", 32),
    (100, "gate_up", 32),
    (120, "linear", 16),
    (120, "down", 8),
}


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("architecture", "variant"),
    one_in(
        9,
        [
            (architecture, variant)
            for architecture, variant in PAIRS
            if os.environ.get("G4CONVERT_AOT") == "all" or (architecture, variant.kind, variant.tile.block_m) in CHOSEN
        ],
    ),
    ids=str,
)
def test_tiles_that_ship_keep_to_the_budget(architecture: int, variant: Variant) -> None:
    check(aot.compile_variant(variant, architecture), variant, architecture)


def test_the_default_run_has_every_architecture_and_product() -> None:
    named = [key for key in CHOSEN if key not in {(a, v.kind, v.tile.block_m) for a, v in PAIRS}]
    assert not named
    assert {key[0] for key in CHOSEN} == set(ARCHITECTURES)
    assert {key[1] for key in CHOSEN} == {"gate_up", "down", "linear"}


@pytest.mark.full
@pytest.mark.parametrize(
    "variant",
    [
        Variant("gate_up", SMALL, "fp16"),
        Variant("down", SMALL, "bf16", group=64),
        Variant("linear", SMALL, "bf16", group=128),
        Variant("down", SMALL, "bf16", group=0),
        Variant("linear", SMALL, "bf16", k=2112),
    ],
    ids=str,
)
def test_other_weights_keep_to_it_too(variant: Variant) -> None:
    check(aot.compile_variant(variant, 80), variant, 80)


@pytest.mark.compiled
@pytest.mark.full
@pytest.mark.parametrize("kind", ["gate_up", "down"])
def test_float32_compiles_without_spills(kind: Kind) -> None:
    assert shipped_tiles("fp32")[0][1] == WIDE
    machine = aot.compile_variant(Variant(kind, WIDE, "fp32"), 80)
    assert machine.spills == 0
    assert machine.loop["FFMA"] > 0


@pytest.mark.compiled
@pytest.mark.parametrize("architecture", one_in(2, [80, 120]))
def test_routing_compiles_without_spills(architecture: int) -> None:
    for machine in aot.compile_helpers(architecture).values():
        assert machine.spills == 0
        assert 0 < machine.registers < 168


def test_the_gate_sees_spills() -> None:
    """A tile too wide for the registers of its warps."""
    machine = aot.compile_variant(Variant("gate_up", Tile(64, 64, 256, 4, 2)), 80)
    assert machine.spills > 0


@pytest.mark.full
def test_the_gate_sees_wgmma_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the word that k is positive, the assembler serializes what tiles for many rows are for."""
    text = Path(inspect.getfile(aot.matmul.fn)).read_text()
    (tmp_path / "loose.py").write_text(text.replace("    tl.assume(kh > 0)\n", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(aot, "matmul", importlib.import_module("loose").matmul)
    assert aot.compile_variant(Variant("down", Tile(64, 64, 128, 4, 3)), 90).serialized


@pytest.mark.full
def test_the_gate_sees_work_done_twice() -> None:
    """Four warps on 32 rows: two of them make the weights that the other two make."""
    variant = Variant("down", Tile(16, 32, 256, 4, 4))
    with pytest.raises(AssertionError):
        check(aot.compile_variant(variant, 90), variant, 90)


def test_the_command_prints_a_head(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(aot, "variants", lambda _: [])
    aot.main(["--architectures", "90"])
    assert capsys.readouterr().out.startswith("Triton 3")
