"""The kernels as compiled, run instruction by instruction without a GPU, against float64: see `ptx`.

What ran here is Triton's PTX, inline assembly included; ptxas and the GPU come after it. The default run has a
few tiles, forms of a weight and architectures; `G4CONVERT_AOT=all` has every tile that ships, and all forms.
"""

from __future__ import annotations

import os
import re
from functools import cache, partial
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("triton")

from helpers import interpreted
from helpers.grids import one_in
from helpers.interpreted import Case
from helpers.ptx.launch import emulated
from helpers.ptx.memory import Fault

from g4convert.forward.triton import fused
from g4convert.forward.triton.fused import linear, moe
from g4convert.forward.triton.tiles import ARCHITECTURES, Tile, shipped_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.ptx.launch import Launch

BOUNDS = {"float32": 1e-6, "float16": 8e-4, "bfloat16": 6e-3}
"""Bounds of Triton's interpreter, too: sums in float32, rounding between the products, and rounding of the result."""

ALL = os.environ.get("G4CONVERT_AOT") == "all"

SMALL, WIDE, WGMMA = Tile(16, 32, 256, 2, 3), Tile(16, 32, 64, 4, 2), Tile(32, 64, 256, 4, 3)
TWICE = Tile(64, 128, 256, 8, 2)
"""Two groups of four warps."""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles anew, once, and leaves nothing in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def unchanged(_: str, ptx: str) -> str:
    return ptx


def run_moe(
    case: Case,
    architecture: int,
    tile: Tile,
    edit: Callable[[str, str], str] = unchanged,
    unsent: tuple[int, int] | None = None,
) -> tuple[float, list[Launch]]:
    """The error of a layer, and its launches.

    Args:
        case: the layer.
        architecture: compute capability of the GPU.
        tile: cut of both products.
        edit: changes a kernel's PTX.
        unsent: token and choice of a pair that is sent to no expert.
    """
    (gate_up, up_dense), (down, down_dense) = interpreted.layer(case)
    x = torch.randn(case.t, case.h).to(getattr(torch, case.dtype))
    chosen, share = interpreted.random_routing(case)
    sent, counted = chosen.clone(), share.clone()
    if unsent is not None:
        sent[unsent], counted[unsent] = case.e, 0
    with emulated(architecture, edit) as launches:
        out = moe(x, sent, share, gate_up, down, tiles=(tile, tile))
    assert out.dtype is x.dtype
    return interpreted.error_of(out, interpreted.expected(x, chosen, counted, up_dense, down_dense, "tanh")), launches


def run_linear(
    case: Case, architecture: int, tile: Tile, edit: Callable[[str, str], str] = unchanged
) -> tuple[float, list[Launch]]:
    """The error of a linear from h to i, and its launch."""
    weight, dense = interpreted.random_weight(case, case.i, case.h)
    x = torch.randn(case.t, case.h).to(getattr(torch, case.dtype))
    with emulated(architecture, edit) as launches:
        out = linear(x, weight, tile=tile)
    return interpreted.error_of(out, x.double() @ dense.T), launches


def _shipped() -> list[tuple[int, Tile]]:
    """Tiles of each architecture: all, or the first one of the oldest, and the first and last ones for wgmma."""
    tables = {name: list(dict.fromkeys(tile for _, tile in shipped_tiles(f"sm_{name}"))) for name in ARCHITECTURES}
    if ALL:
        return [(architecture, tile) for architecture, tiles in tables.items() for tile in tiles]
    wide = [tile for tile in tables[90] if tile.num_warps >= 4]
    return [(80, tables[80][0]), (90, wide[0]), (90, wide[-1])]


TOKENS, PAIRS = 9, 17
"""Each token is sent to both experts that are not idle, but for one of a pair."""


@cache
def shipped(architecture: int, tile: Tile) -> tuple[float, list[Launch]]:
    """A layer whose k is not whole steps, and in which the last block of columns overlaps another if it can."""
    wide = -(-tile.block_n * 3 // 2 // 32) * 32  # whole groups
    case = Case(t=TOKENS, h=320, i=wide, e=4, idle=2, dtype="bfloat16")
    return run_moe(case, architecture, tile, unsent=(0, 0))


@pytest.mark.compiled
@pytest.mark.parametrize(("architecture", "tile"), one_in(3, _shipped()), ids=str)
def test_tiles_that_ship_are_right(architecture: int, tile: Tile) -> None:
    error, launches = shipped(architecture, tile)
    assert error < BOUNDS["bfloat16"]
    assert [launch.kernel for launch in launches] == ["align", "matmul", "matmul", "top_k_sum"]
    for launch in launches[1:3]:
        assert ("wgmma.mma_async" in launch.ptx) == (architecture == 90 and tile.num_warps >= 4)


@pytest.mark.parametrize(("architecture", "tile"), one_in(3, _shipped()), ids=str)
def test_each_word_is_read_once_for_each_block_of_rows(architecture: int, tile: Tile) -> None:
    """Words where blocks of columns overlap are read once more; those of experts without tokens, never."""
    for launch, gates in zip(shipped(architecture, tile)[1][1:3], (2, 1), strict=True):
        n, kh, experts = (launch.arguments[name] for name in ("n", "kh", "experts"))
        blocks = torch.bincount(experts[experts >= 0], minlength=4)
        assert 0 in blocks
        programs = torch.zeros(n, dtype=torch.int64)  # that have a column
        for start in range(0, n, tile.block_n):
            first = min(start, n - tile.block_n)
            programs[first : first + tile.block_n] += 1
        words, x, out = launch.traffic("words"), launch.traffic("x"), launch.traffic("out", "store")
        found = torch.from_numpy(words.times).view(4, gates, n, 2 * kh)
        assert torch.equal(found, (blocks[:, None] * programs)[:, None, :, None].expand_as(found))
        if kh % 16 == 0:  # otherwise Triton does not know that rows begin at multiples of 16 bytes
            assert set(words.widths) == {16}
            assert words.sectors * 32 == words.bytes
        assert x.bytes == PAIRS * 8 * kh * -(-n // tile.block_n), "rows that are padding are read"
        assert out.bytes == PAIRS * 2 * int(programs.sum())


FORMS = [
    (80, SMALL, Case(t=1, h=128, i=64, dtype="bfloat16")),
    (80, WIDE, Case(t=9, h=96, i=64)),
    (89, SMALL, Case(t=9, h=256, i=128, dtype="float16", group=128, top_k=3)),
    (90, WGMMA, Case(t=9, h=192, i=64, dtype="bfloat16", group=64, scale="float32")),
]
MORE_FORMS = [
    (architecture, tile, Case(t=t, h=2 * group or 96, i=group or 40, dtype=dtype, group=group, e=17, idle=8))
    for architecture, tile in ((80, SMALL), (90, WGMMA), (100, SMALL), (80, WIDE))
    for dtype in (("float32",) if tile == WIDE else ("float16", "bfloat16"))
    for group in (0, 32, 64, 128)
    for t in (2, 21)
]


@pytest.mark.compiled
@pytest.mark.parametrize(("architecture", "tile", "case"), one_in(4, FORMS + MORE_FORMS * ALL), ids=str)
def test_weights_of_every_form_are_right(architecture: int, tile: Tile, case: Case) -> None:
    assert run_moe(case, architecture, tile)[0] < BOUNDS[case.dtype]


LINEARS = [
    (80, SMALL, Case(t=5, h=1056, i=72, dtype="bfloat16")),
    (80, WIDE, Case(t=3, h=96, i=20, block=(16, 16, 64))),
    (90, WGMMA, Case(t=40, h=1088, i=100, dtype="bfloat16")),
    (90, TWICE, Case(t=70, h=576, i=160, dtype="bfloat16")),
    (100, SMALL, Case(t=17, h=640, i=48, dtype="bfloat16", group=128)),
    (120, SMALL, Case(t=17, h=352, i=36, dtype="float16", group=0)),
]


@pytest.mark.compiled
@pytest.mark.parametrize(("architecture", "tile", "case"), one_in(6, LINEARS), ids=str)
def test_a_linear_is_right_at_every_edge(architecture: int, tile: Tile, case: Case) -> None:
    """Neither rows nor columns nor steps come out even, and the pipeline runs for more steps than it has stages."""
    assert run_linear(case, architecture, tile)[0] < BOUNDS[case.dtype]


@pytest.mark.compiled
@pytest.mark.full
def test_what_pads_is_not_read() -> None:
    """The last pair is sent to nobody, so nobody writes its row between the products, and nobody may read it."""
    case = Case(t=3, h=64, i=64, dtype="bfloat16")
    assert run_moe(case, 80, SMALL, unsent=(2, 1))[0] < BOUNDS[case.dtype]


@pytest.mark.compiled
@pytest.mark.full
@pytest.mark.parametrize(
    ("architecture", "tile", "dtype", "given"),
    [
        (90, WGMMA, "bfloat16", True),
        (90, SMALL, "bfloat16", False),
        (80, WIDE, "float32", False),
        (120, WGMMA, "bfloat16", False),
    ],
)
def test_a_triton_without_the_fence_is_given_one(
    monkeypatch: pytest.MonkeyPatch, architecture: int, tile: Tile, dtype: str, *, given: bool
) -> None:
    """Between copies to shared memory and wgmma; `test_what_a_kernel_must_not_do_is_refused` takes it away."""
    monkeypatch.setattr(fused, "FENCES", False)
    error, (_, *products, _) = run_moe(Case(t=2, h=192, i=64, dtype=dtype), architecture, tile)
    assert error < BOUNDS[dtype]
    for launch in products:
        assert ("fence.proxy.async.shared::cta; mov" in launch.ptx) == given


# Damage to the PTX, and how it must show: as a refusal that says so, or as another result.


def drop(pattern: str, which: int, _: str, ptx: str) -> str:
    """Take away one of the places."""
    found = list(re.finditer(pattern, ptx))[which]
    return ptx[: found.start()] + ptx[found.end() :]


def swap(pattern: str, by: str, _: str, ptx: str) -> str:
    """Change every place."""
    changed = re.sub(pattern, by, ptx)
    assert changed != ptx
    return changed


COPY_WAIT, BARRIER = r"\n\s*cp\.async\.wait_group [^\n]*", r"\n\s*bar\.sync[^\n]*"
AFTER_WAIT = (rf"({COPY_WAIT}){BARRIER}", r"\1")
DAMAGED = {80: Case(t=17, h=1088, i=64, dtype="bfloat16"), 90: Case(t=33, h=1088, i=64, dtype="bfloat16")}
"""The pipeline goes round, the last step is not whole, and the last block of rows is not full."""

REFUSED = [
    (80, partial(drop, COPY_WAIT, 0), "reads what an asynchronous copy has not been waited for"),
    (80, partial(drop, COPY_WAIT, -1), "writes over an asynchronous copy not waited for"),
    (
        80,
        partial(swap, r"(wait_group\s+)[1-9]\d*", r"\g<1>99"),
        "reads what an asynchronous copy has not been waited for",
    ),
    (80, partial(swap, *AFTER_WAIT), "race: shared byte"),
    (80, partial(drop, BARRIER, -1), "race: shared byte"),
    (80, partial(swap, r"selp\.b32(\s+%r\d+), 16, 0, %p\d+", r"mov.b32\1, 16"), "outside of every tensor"),
    (80, partial(swap, r"@%p\d+ (st\.global)", r"\1"), "outside of every tensor"),
    (90, partial(drop, COPY_WAIT, 0), "has not been waited for"),
    (90, partial(swap, *AFTER_WAIT), "race: shared byte"),
    (90, partial(drop, BARRIER, -1), "race: shared byte"),
    (90, partial(drop, r"\n\s*wgmma\.fence[^\n]*", 0), "written after the last wgmma.fence"),
    (90, partial(drop, r"\n\s*wgmma\.wait_group[^\n]*", -1), "of a product not waited for"),
    (90, partial(drop, r"\n\s*wgmma\.commit_group[^\n]*", -1), "of a product not waited for"),
    (90, partial(drop, r"fence\.proxy\.async[^;]*;", 0), "past fence.proxy.async"),
    (90, partial(swap, r"wgmma\.fence\.sync", "wgmma.fence.async"), "not known here"),
]


@pytest.mark.parametrize(("architecture", "damage", "message"), one_in(3, REFUSED), ids=[row[2] for row in REFUSED])
def test_what_a_kernel_must_not_do_is_refused(
    architecture: int, damage: Callable[[str, str], str], message: str
) -> None:
    with pytest.raises(Fault, match=message):
        run_linear(DAMAGED[architecture], architecture, {80: SMALL, 90: WGMMA}[architecture], damage)


MISTAKEN = [
    (80, swap, r"0x43004300, 0xEA", "0x43004300, 0x80"),
    (80, swap, r"shr\.b32 t, (%r\d+), 8;", r"shr.b32 t, \1, 4;"),
    (80, swap, r"fma\.rn\.bf16x2 (%r\d+), t, (%r\d+), zero", r"fma.rn.bf16x2 \1, t, \2, one"),
    (80, swap, r"(ldmatrix\.sync\.aligned\.m8n8\.x4)(\.shared)", r"\1.trans\2"),
    (80, swap, r"(ldmatrix\S+ \{[^}]*\}, \[%r\d+)\]", r"\1+16]"),
    (80, swap, r"(mma\.sync\S+ \{[^}]*\}, \{ )(%r\d+, )(%r\d+, )", r"\1\3\2"),
    (80, swap, r"(mma\.sync\S+ \{[^}]*\}, \{[^}]*\}, \{ )(%r\d+), (%r\d+)", r"\1\3, \2"),
    (90, swap, r"(wgmma\.mma_async\S+ \{[^}]*\}, \{%r\d+,)(%r\d+),(%r\d+)", r"\1\3,\2"),
    (90, swap, r"(wgmma\.mma_async\S+ \{)(%r\d+),(%r\d+)", r"\1\3,\2"),
    (90, swap, r"mov\.pred(\s+%p\d+), -1", r"mov.pred\1, 0"),
    (90, swap, r"4611686293305294848", str(2 << 62 | 32 << 32 | 1 << 16)),
]


@pytest.mark.parametrize(("architecture", "change", "pattern", "by"), one_in(4, MISTAKEN))
def test_what_is_wrong_gives_another_result(
    architecture: int, change: Callable[..., str], pattern: str, by: str
) -> None:
    case, tile = DAMAGED[architecture], {80: SMALL, 90: WGMMA}[architecture]
    try:
        error, _ = run_linear(case, architecture, tile, partial(change, pattern, by))
    except Fault:
        return  # the address is one that nothing was written to
    assert not error < 10 * BOUNDS[case.dtype]


@pytest.mark.parametrize("architecture", DAMAGED)
def test_what_is_right_is_not(architecture: int) -> None:
    tile = {80: SMALL, 90: WGMMA}[architecture]
    assert run_linear(DAMAGED[architecture], architecture, tile)[0] < BOUNDS["bfloat16"]


@pytest.mark.parametrize("edit", [partial(drop, BARRIER, -1), partial(swap, BARRIER, "")], ids=["last", "all"])
def test_sorting_without_barriers_is_a_race(edit: Callable[[str, str], str]) -> None:
    def damage(name: str, ptx: str) -> str:
        return edit(name, ptx) if name == "align" else ptx

    with pytest.raises(Fault, match=r"align, block 0, .*race: "):
        run_moe(Case(t=17, h=64, i=64, dtype="bfloat16"), 80, SMALL, damage)
