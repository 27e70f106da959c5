"""Values of config keys, as the shapes of stored tensors show them.

Each value is read from one or two tensors, for the decoder, the towers and embedders, and a drafter. Values that no
shape shows (the number of experts that run, windows, angles) are left out. Names are bodies, without their prefix.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Value = int | list[int] | list[str] | Mapping[str, Mapping[str, int]]
Reading = tuple[str, str, Value]
"""Section of the config (empty for the top level), key, and the value that fits the tensors."""
Read = Iterator[tuple[str, Value]]

_LAYER = re.compile(r"^layers\.(\d+)\.")
_VISION_LAYER = re.compile(r"^vision_tower\.encoder\.layers\.(\d+)\.")
_AUDIO_LAYER = re.compile(r"^audio_tower\.layers\.(\d+)\.")
_FULL, _SLIDING = "full_attention", "sliding_attention"
_COLORS = 3


def readings(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[Reading]:
    """Yield the keys of every section that is there, with the values that fit the tensors."""
    towers: tuple[tuple[str, Read], ...] = (
        ("vision_config", _vision(shapes, config.get("vision_config"))),
        ("audio_config", _audio(shapes, config.get("audio_config"))),
    )
    text = config.get("text_config")
    if isinstance(text, Mapping):
        yield from (("text_config", *reading) for reading in _decoder(shapes, text))
        yield from (("", *reading) for reading in _drafter(shapes))
    else:
        yield from (("", *reading) for reading in _decoder(shapes, config))
    for name, values in towers:
        if isinstance(config.get(name), Mapping):
            yield from ((name, *reading) for reading in values)


_DECODER = (
    ("vocab_size", "embed_tokens.weight", 0),
    ("hidden_size", "embed_tokens.weight", 1),
    ("vocab_size_per_layer_input", "embed_tokens_per_layer.weight", 0),
    ("hidden_size_per_layer_input", "per_layer_projection_norm.weight", 0),
    ("intermediate_size", "layers.{}.mlp.up_proj.weight", 0),
    ("head_dim", "layers.{}.self_attn.q_norm.weight", 0),
    ("num_experts", "layers.{}.router.proj.weight", 0),
    ("moe_intermediate_size", "layers.{}.experts.down_proj", 2),
    ("moe_intermediate_size", "layers.{}.experts.0.down_proj.weight", 1),
)
"""Key, the tensor whose shape shows its value (`{}` is the number of a sliding layer), and the axis."""


def _decoder(shapes: Shapes, section: Mapping[str, Any]) -> Read:
    count = _count(shapes, _LAYER)
    kinds = _kinds(shapes, count, section)
    sliding = kinds.index(_SLIDING) if _SLIDING in kinds else 0
    yield from _sizes(shapes, _DECODER, sliding)
    if "embed_tokens_per_layer.weight" not in shapes:
        yield "hidden_size_per_layer_input", 0
    layer = f"layers.{sliding}.self_attn"
    yield from _heads(shapes, "num_attention_heads", f"{layer}.q_proj.weight", f"{layer}.q_norm.weight")
    yield from _heads(shapes, "num_key_value_heads", f"{layer}.k_proj.weight", f"{layer}.k_norm.weight")
    yield "attention_bias", any(body.endswith("self_attn.q_proj.bias") for body in shapes)
    yield "enable_moe_block", f"layers.{sliding}.router.proj.weight" in shapes
    if count:
        yield "num_hidden_layers", count
        yield "layer_types", list(kinds)
        if "per_layer_config" in section:
            yield "per_layer_config", _layers(shapes, count, section)
        yield from _full_layers(shapes, kinds)
        yield from _shared_layers(shapes, count, section.get("num_kv_shared_layers"))


def _kinds(shapes: Shapes, count: int, section: Mapping[str, Any]) -> Sequence[str]:
    """Return the kind of each layer: by the widths of heads, if they differ, otherwise as the config says.

    The last layer is always of full attention.
    """
    widths = [shapes.get(f"layers.{n}.self_attn.q_norm.weight") for n in range(count)]
    if len({*widths}) > 1 and all(widths):
        return [_FULL if width == widths[-1] else _SLIDING for width in widths]
    stated = section.get("layer_types")
    return stated if isinstance(stated, list) else []


def _full_layers(shapes: Shapes, kinds: Sequence[str]) -> Read:
    """Yield the keys of layers of full attention, as the first of them that has keys shows them."""
    attention = [f"layers.{n}.self_attn" for n, kind in enumerate(kinds) if kind == _FULL]
    if attention:
        yield from _sizes(shapes, (("global_head_dim", f"{attention[-1]}.q_norm.weight", 0),))
    layer = next((one for one in attention if f"{one}.k_proj.weight" in shapes), None)
    if layer is None:
        return
    yield "attention_k_eq_v", f"{layer}.v_proj.weight" not in shapes
    yield from _heads(shapes, "num_global_key_value_heads", f"{layer}.k_proj.weight", f"{layer}.k_norm.weight")


def _layers(shapes: Shapes, count: int, section: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
    """Return the values of layers whose heads differ from those of the whole; layers without keys show widths alone."""
    usual = {key: section.get(key) for key in ("head_dim", "num_key_value_heads")}
    overrides: dict[str, Mapping[str, int]] = {}
    for layer in range(count):
        attention = f"layers.{layer}.self_attn"
        own_sizes = (
            *_sizes(shapes, (("head_dim", f"{attention}.q_norm.weight", 0),)),
            *_heads(shapes, "num_key_value_heads", f"{attention}.k_proj.weight", f"{attention}.k_norm.weight"),
        )
        if other := {key: value for key, value in own_sizes if isinstance(value, int) and value != usual[key]}:
            overrides[f"{layer:0{len(str(count - 1))}}"] = other
    return overrides


def _shared_layers(shapes: Shapes, count: int, stated: object) -> Read:
    """Yield the keys of the last layers that have no keys of their own: their number, and whether their MLP is wider.

    Some writers store keys for them, too: then only a wider MLP shows how many there are.
    """
    with_keys = [n for n in range(count) if f"layers.{n}.self_attn.k_proj.weight" in shapes]
    rows = [shapes.get(f"layers.{n}.mlp.up_proj.weight", (0,))[0] for n in range(count)]
    wide = [n for n in range(count) if rows[n] == 2 * rows[0] > 0]
    least = count - max(with_keys, default=-1) - 1
    if wide or not (isinstance(stated, int) and least <= stated <= count):
        yield "num_kv_shared_layers", count - wide[0] if wide else least
    yield "use_double_wide_mlp", bool(wide)


_VISION = (
    ("hidden_size", "vision_tower.encoder.layers.0.input_layernorm.weight", 0),
    ("intermediate_size", "vision_tower.encoder.layers.0.mlp.up_proj.linear.weight", 0),
    ("head_dim", "vision_tower.encoder.layers.0.self_attn.q_norm.weight", 0),
    ("position_embedding_size", "vision_tower.patch_embedder.position_embedding_table", 1),
    ("mm_embed_dim", "vision_embedder.patch_dense.weight", 0),
    ("mm_posemb_size", "vision_embedder.pos_embedding", 0),
    ("output_proj_dims", "embed_vision.embedding_projection.weight", 1),
)


def _vision(shapes: Shapes, section: Mapping[str, Any] | None) -> Read:
    yield from _sizes(shapes, _VISION)
    layer = "vision_tower.encoder.layers.0.self_attn"
    yield from _heads(shapes, "num_attention_heads", f"{layer}.q_proj.linear.weight", f"{layer}.q_norm.weight")
    yield from _heads(shapes, "num_key_value_heads", f"{layer}.k_proj.linear.weight", f"{layer}.k_norm.weight")
    if patches := shapes.get("vision_tower.patch_embedder.input_proj.weight"):
        yield "patch_size", isqrt(patches[-1] // _COLORS)
    if patches := shapes.get("vision_embedder.patch_dense.weight"):
        side = isqrt(patches[-1] // _COLORS)
        patch, pooled = ((section or {}).get(key) for key in ("patch_size", "pooling_kernel_size"))
        if isinstance(patch, int) and patch > 0 and side % patch == 0:
            yield "pooling_kernel_size", side // patch
        elif isinstance(pooled, int) and pooled > 0:
            yield "patch_size", side // pooled
    if count := _count(shapes, _VISION_LAYER):
        yield "num_hidden_layers", count
        yield "standardize", "vision_tower.std_bias" in shapes
        yield "use_clipped_linears", _clipped(shapes, "vision_tower.")


_AUDIO = (
    ("hidden_size", "audio_tower.layers.0.norm_out.weight", 0),
    ("output_proj_dims", "audio_tower.output_proj.weight", 0),
)
_UNIFIED_AUDIO = ("audio_embed_dim", "hidden_size", "output_proj_dims", "audio_samples_per_token")


def _audio(shapes: Shapes, section: Mapping[str, Any] | None) -> Read:
    count = _count(shapes, _AUDIO_LAYER)
    projection = shapes.get("embed_audio.embedding_projection.weight")
    if not count and projection:
        yield next((name for name in _UNIFIED_AUDIO if name in (section or {})), _UNIFIED_AUDIO[0]), projection[-1]
    if not count:
        return
    yield from _sizes(shapes, _AUDIO)
    yield "num_hidden_layers", count
    layer = "audio_tower.layers.0"
    yield from _heads(
        shapes, "num_attention_heads", f"{layer}.self_attn.q_proj.linear.weight", f"{layer}.self_attn.per_dim_scale"
    )
    channels = [shapes.get(f"audio_tower.subsample_conv_projection.layer{n}.conv.weight", ()) for n in (0, 1)]
    if all(channels):
        yield "subsampling_conv_channels", [one[0] for one in channels]
    if kernel := shapes.get(f"{layer}.lconv1d.depthwise_conv1d.weight"):
        yield "conv_kernel_size", max(kernel[1:], default=0)
    yield "use_clipped_linears", _clipped(shapes, "audio_tower.")


def _drafter(shapes: Shapes) -> Read:
    yield from _sizes(
        shapes,
        (
            ("backbone_hidden_size", "post_projection.weight", 0),
            ("num_centroids", "masked_embedding.centroids.weight", 0),
        ),
    )
    if "post_projection.weight" in shapes:
        yield "use_ordered_embeddings", "masked_embedding.centroids.weight" in shapes


def _sizes(shapes: Shapes, table: Sequence[tuple[str, str, int]], layer: int = 0) -> Read:
    """Yield keys that are the size of an axis of one tensor."""
    for key, pattern, axis in table:
        if len(shape := shapes.get(pattern.format(layer), ())) > axis:
            yield key, shape[axis]


def _heads(shapes: Shapes, key: str, rows: str, width: str) -> Read:
    """Yield a number of heads: the rows of a projection, by the width of a head."""
    projection, norm = shapes.get(rows), shapes.get(width)
    if projection and norm and norm[0]:
        yield key, projection[0] // norm[0]


def _clipped(shapes: Shapes, tower: str) -> bool:
    return any(body.startswith(tower) and body.endswith((".input_max", ".output_max")) for body in shapes)


def _count(shapes: Shapes, layer: re.Pattern[str]) -> int:
    """Return the number of layers: one more than the largest number in a name."""
    return max((int(found[1]) + 1 for body in shapes if (found := layer.match(body))), default=0)
