"""Memory of a forward on packed words: the checkpoint, and a workspace that no weight is dequantized into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.headers import planned
from helpers.released_configs import released
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from g4convert.errors import UsageError
from g4convert.forward.triton import fused
from g4convert.forward.triton.packed import Packed
from g4convert.forward.triton.routing import most_blocks
from g4convert.forward.triton.tiles import Tile
from g4convert.planning.layout import lay_out

GB = 1e9
H, I, E, TOP_K = 2816, 704, 128, 8  # noqa: E741 - as in the docstrings of kernels
_BLOCK = 8
"""Rows of the smallest tile."""


class Allocations(TorchDispatchMode):
    """Adds up the memory that operations make, in bytes; nothing is freed here."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}  # noqa: SLF001 - its identity
        if isinstance(out, torch.Tensor) and out.untyped_storage()._cdata not in known:  # noqa: SLF001 - the same
            self.storages[out.untyped_storage()._cdata] = out.untyped_storage()  # noqa: SLF001 - the same
        return out

    @property
    def nbytes(self) -> int:
        """All of it."""
        return sum(storage.nbytes() for storage in self.storages.values())


class NoKernel:
    """Takes the place of a kernel; sees how it is launched."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:  # noqa: ANN401 - a function
        return lambda *_, **__: None


def meta(n: int, k: int) -> Packed:
    scale = torch.empty(E, k // 32, n, dtype=torch.bfloat16, device="meta").transpose(1, 2)
    return Packed(torch.empty(E, n, k // 8, dtype=torch.int32, device="meta"), scale)


def workspace_bytes(tokens: int) -> int:
    """Return the bytes that `moe` allocates at its peak, its result included, for bf16 and the smallest tiles."""
    pairs = tokens * TOP_K
    blocks = most_blocks(pairs, E, _BLOCK)
    rows = tokens * H + tokens * H + pairs * I + pairs * H  # x by slices, the result, act, y
    return rows * 2 + 2 * blocks * (_BLOCK + 1) * 4  # sorted for each product


@pytest.mark.parametrize("t", [1, 64, 4096, 16384])
def test_a_layer_allocates_its_workspace_and_nothing_dense(monkeypatch: pytest.MonkeyPatch, t: int) -> None:
    for kernel in ("matmul", "align", "top_k_sum"):
        monkeypatch.setattr(fused, kernel, NoKernel())
    monkeypatch.setattr(fused, "INTERPRETED", True)
    x = torch.empty(t, H, dtype=torch.bfloat16, device="meta")
    chosen = torch.empty(t, TOP_K, dtype=torch.int64, device="meta")
    share = torch.empty(t, TOP_K, device="meta")
    weights = meta(2 * I, H), meta(H, I)
    with Allocations() as made:
        fused.moe(x, chosen, share, *weights)
    workspace = workspace_bytes(t)
    assert made.nbytes == pytest.approx(workspace, rel=0.02, abs=1 << 17)


def test_more_blocks_than_a_grid_takes_is_one_error() -> None:
    x, out = (torch.empty(1, size, dtype=torch.bfloat16, device="meta") for size in (I, H))
    routing = fused.Routing("rows", 8 * 65_536, 1, 65_536)
    with pytest.raises(UsageError, match="524288 rows in blocks of 8: a GPU takes 65535 blocks at once"):
        fused.product(x, meta(H, I), out, routing, Tile(8, 64, 256, 2, 3))


def test_26b_runs_in_20_gb_at_4k_tokens() -> None:
    """Weights as stored, the workspace of one layer, hidden states and attention of one layer, logits of 256 tokens."""
    text = released("26B-A4B")["text_config"]
    assert (text["hidden_size"], text["moe_intermediate_size"], text["num_experts"]) == (H, I, E)
    weights = lay_out(planned(released("26B-A4B"))).tensor_bytes
    t, heads = 4096, text["num_attention_heads"]
    workspace = workspace_bytes(t)
    states = 6 * t * H * 2 + 4 * t * heads * text["global_head_dim"] * 2
    attention = 2 * heads * t * t * 2  # scores and probabilities in bf16, where nothing is fused
    logits = 256 * text["vocab_size"] * (2 + 4)
    assert weights + workspace + states + attention + logits < 20 * GB
