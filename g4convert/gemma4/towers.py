"""The tensors of the vision and audio parts: towers, embedders and their projections into the decoder.

Names are relative to `model.`. The Linears of a tower's layers are inside a wrapper that may clip, so their weights are
`...q_proj.linear.weight`, with four scalar limits beside if the tower was trained with clipping. Limits may be missing:
transformers then leaves them at infinity, which clips nothing.
"""

from collections.abc import Iterator
from itertools import product
from typing import assert_never

from g4convert.gemma4.parts import (
    AudioEmbedder,
    AudioPart,
    AudioTower,
    VisionEmbedder,
    VisionPart,
    VisionTower,
)
from g4convert.gemma4.roles import Expected, Role

Named = Iterator[tuple[str, Expected]]

_CLIP_LIMITS = tuple("_".join(pair) for pair in product(("input", "output"), ("min", "max")))
_CLIP = Expected((), Role.CLIP, optional=True)


def vision_tensors(vision: VisionPart, text_width: int) -> Named:
    """Yield name below `model.` and expected tensor of the vision tower or embedder, with its projection."""
    match vision:
        case VisionTower():
            for name, expected in _vision_tower(vision):
                yield f"vision_tower.{name}", expected
        case VisionEmbedder():
            for name, expected in _vision_embedder(vision):
                yield f"vision_embedder.{name}", expected
        case _:
            assert_never(vision)
    yield "embed_vision.embedding_projection.weight", _embedder(text_width, vision.output_size)


def audio_tensors(audio: AudioPart, text_width: int) -> Named:
    """Yield name below `model.` and expected tensor of the audio tower or embedder, with its projection."""
    match audio:
        case AudioTower():
            for name, expected in _audio_tower(audio):
                yield f"audio_tower.{name}", expected
        case AudioEmbedder():
            pass
        case _:
            assert_never(audio)
    yield "embed_audio.embedding_projection.weight", _embedder(text_width, audio.output_size)


def _embedder(n: int, k: int) -> Expected:
    return Expected((n, k), Role.EMBEDDER, linear=True)


def _clippable(name: str, n: int, k: int, role: Role, *, clipped: bool) -> Named:
    """Yield the tensors of a Linear [n, k] in its wrapper."""
    yield f"{name}.linear.weight", Expected((n, k), role, linear=True)
    if clipped:
        for limit in _CLIP_LIMITS:
            yield f"{name}.{limit}", _CLIP


def _vision_tower(tower: VisionTower) -> Named:
    h = tower.hidden_size
    role = Role.VISION_TOWER
    yield "patch_embedder.input_proj.weight", Expected((h, 3 * tower.patch_size**2), role, linear=True)
    yield "patch_embedder.position_embedding_table", Expected((2, tower.position_embedding_size, h), role)
    for layer in range(tower.layers):
        for name, expected in _vision_layer(tower):
            yield f"encoder.layers.{layer}.{name}", expected
    if tower.standardize:
        yield "std_bias", Expected((h,), role)
        yield "std_scale", Expected((h,), role)


def _vision_layer(tower: VisionTower) -> Named:
    h, i = tower.hidden_size, tower.intermediate_size
    q, kv = tower.heads * tower.head_dim, tower.kv_heads * tower.head_dim
    role = Role.VISION_TOWER
    yield "input_layernorm.weight", Expected((h,), role)
    for name, n, k in (("q_proj", q, h), ("k_proj", kv, h), ("v_proj", kv, h), ("o_proj", h, q)):
        yield from _clippable(f"self_attn.{name}", n, k, role, clipped=tower.clipped)
    yield "self_attn.q_norm.weight", Expected((tower.head_dim,), role)
    yield "self_attn.k_norm.weight", Expected((tower.head_dim,), role)
    yield "post_attention_layernorm.weight", Expected((h,), role)
    yield "pre_feedforward_layernorm.weight", Expected((h,), role)
    for name, n, k in (("gate_proj", i, h), ("up_proj", i, h), ("down_proj", h, i)):
        yield from _clippable(f"mlp.{name}", n, k, role, clipped=tower.clipped)
    yield "post_feedforward_layernorm.weight", Expected((h,), role)


def _vision_embedder(embedder: VisionEmbedder) -> Named:
    width, patch = embedder.hidden_size, embedder.patch_dim
    role = Role.EMBEDDER
    for name, size in (("patch_ln1", patch), ("patch_ln2", width), ("pos_norm", width)):
        yield f"{name}.weight", Expected((size,), role)
        yield f"{name}.bias", Expected((size,), role)
    yield "patch_dense.weight", Expected((width, patch), role, linear=True)
    yield "patch_dense.bias", Expected((width,), role)
    yield "pos_embedding", Expected((embedder.position_embedding_size, 2, width), role)


def _audio_tower(tower: AudioTower) -> Named:
    h = tower.hidden_size
    first, second = tower.channels
    role = Role.AUDIO_TOWER
    head = "subsample_conv_projection"
    for layer, (inputs, outputs) in enumerate(((1, first), (first, second))):
        yield f"{head}.layer{layer}.conv.weight", Expected((outputs, inputs, 3, 3), role, convolution=True)
        yield f"{head}.layer{layer}.norm.weight", Expected((outputs,), role)
    yield f"{head}.input_proj_linear.weight", Expected((h, first // 4 * second), role, linear=True)
    for layer in range(tower.layers):
        for name, expected in _audio_layer(tower):
            yield f"layers.{layer}.{name}", expected
    yield "output_proj.weight", Expected((tower.output_size, h), role, linear=True)
    yield "output_proj.bias", Expected((tower.output_size,), role)


def _audio_layer(tower: AudioTower) -> Named:
    h = tower.hidden_size
    head_dim = h // tower.heads
    q = tower.heads * head_dim
    role = Role.AUDIO_TOWER
    norm = Expected((h,), role)
    yield from _audio_feed_forward("feed_forward1", tower)
    yield "norm_pre_attn.weight", norm
    for name, n, k in (("q_proj", q, h), ("k_proj", q, h), ("v_proj", q, h), ("post", h, h)):
        yield from _clippable(f"self_attn.{name}", n, k, role, clipped=tower.clipped)
    yield "self_attn.relative_k_proj.weight", Expected((q, h), role, linear=True)
    yield "self_attn.per_dim_scale", Expected((head_dim,), role)
    yield "norm_post_attn.weight", norm
    yield "lconv1d.pre_layer_norm.weight", norm
    yield from _clippable("lconv1d.linear_start", 2 * h, h, role, clipped=tower.clipped)
    yield "lconv1d.depthwise_conv1d.weight", Expected((h, 1, tower.conv_kernel_size), role, convolution=True)
    yield "lconv1d.conv_norm.weight", norm
    yield from _clippable("lconv1d.linear_end", h, h, role, clipped=tower.clipped)
    yield from _audio_feed_forward("feed_forward2", tower)
    yield "norm_out.weight", norm


def _audio_feed_forward(name: str, tower: AudioTower) -> Named:
    h = tower.hidden_size
    norm = Expected((h,), Role.AUDIO_TOWER)
    yield f"{name}.pre_layer_norm.weight", norm
    yield from _clippable(f"{name}.ffw_layer_1", 4 * h, h, Role.AUDIO_TOWER, clipped=tower.clipped)
    yield from _clippable(f"{name}.ffw_layer_2", h, 4 * h, Role.AUDIO_TOWER, clipped=tower.clipped)
    yield f"{name}.post_layer_norm.weight", norm
