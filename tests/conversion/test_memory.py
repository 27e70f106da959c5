"""Memory of the packed path for a whole 26B-A4B: arithmetic over the real names, shapes and dtypes.

The files are those that a conversion would write, headers and shapes included, but holes where the weights are, so a
model is built from them as from the real ones and every tensor of it can be counted. Nothing is multiplied.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from helpers.headers import planned
from helpers.released_configs import released

from g4convert.forward.load import load
from g4convert.planning.layout import lay_out

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from g4convert.forward.models import Model

pytestmark = pytest.mark.wide  # a model of 26B is made

PACKED = 24_490_000_000
"""Packed weights out of 25.2 billion, to half a percent: the rest is the embedding."""
TOKENS, TOP_K, HIDDEN, INTERMEDIATE = 4096, 8, 2816, 704


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26B-A4B in W4A16 as a conversion would write it, without its weights."""
    directory = tmp_path_factory.mktemp("26B-A4B-W4A16")
    config = released("26B-A4B")
    (directory / "config.json").write_text(json.dumps(config))
    layout = lay_out(planned(config))
    for shard in layout.shards:
        (directory / shard.file).write_bytes(shard.head)
        os.truncate(directory / shard.file, shard.size)
    (directory / "model.safetensors.index.json").write_text(json.dumps(layout.index()))
    return directory


@pytest.fixture(scope="module")
def model(hollow: Path) -> Model:
    return load(hollow, dtype="bfloat16", memory="stream")


def held(model: Model) -> dict[str, torch.Tensor]:
    """Every tensor of the model once, also those that come and go."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a tied head is not named again
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def test_a_whole_model_is_16_gb_and_the_files(model: Model, hollow: Path) -> None:
    total = sum(tensor.nbytes for tensor in held(model).values())
    stored = sum(path.stat().st_size for path in hollow.glob("*.safetensors"))
    assert 15.9e9 < total < 16.6e9
    assert abs(total - stored) < 0.01e9  # headers, shapes, rotary tables: nothing is unpacked


def test_nothing_dense_is_held_of_what_is_packed(model: Model) -> None:
    tensors = held(model)
    words = {name: tensor for name, tensor in tensors.items() if name.endswith("packed")}
    assert 8 * sum(tensor.numel() for tensor in words.values()) == pytest.approx(PACKED, rel=0.005)
    decoder = {name: tensor for name, tensor in tensors.items() if ".layers." in name and "language_model" in name}
    floats = {name: tensor for name, tensor in decoder.items() if tensor.is_floating_point()}
    kept = {name: tensor for name, tensor in floats.items() if not name.endswith("scale")}
    assert {name.rpartition(".layers.")[2].partition(".")[2] for name in kept if kept[name].numel() > HIDDEN} == {
        "router.proj.weight"
    }
    groups = sum(tensor.numel() for name, tensor in floats.items() if name.endswith("_scale") and tensor.ndim > 1)
    assert groups * 32 == 8 * sum(tensor.numel() for tensor in words.values())


def test_a_forward_of_4096_tokens_stays_below_20_gb(model: Model) -> None:
    """The largest things that exist at once on a GPU, where the fused kernels run; not measured on one."""
    text = released("26B-A4B")["text_config"]
    weights = sum(tensor.nbytes for tensor in held(model).values())
    sliding = text["num_key_value_heads"] * text["head_dim"] * min(TOKENS, text["sliding_window"])
    full = text["num_global_key_value_heads"] * text["global_head_dim"] * TOKENS
    kinds = text["layer_types"]
    cache = 2 * 2 * (kinds.count("sliding_attention") * sliding + kinds.count("full_attention") * full)
    experts = TOKENS * TOP_K * (2 * INTERMEDIATE + 4 * HIDDEN)  # what goes between the kernels: bf16, then float32
    residuals = 4 * TOKENS * HIDDEN * 4
    scores = 2 * text["num_attention_heads"] * TOKENS**2 * 4  # where no fused attention takes heads of 512
    logits = TOKENS * text["vocab_size"] * 2  # of every token; `generate` makes those of one
    assert weights + cache + max(experts, scores, logits) + residuals < 20e9
    assert max(experts, scores, logits) > 2e9  # the arithmetic sees what is large
