"""Names, shapes and roles of all tensors of a Gemma 4 checkpoint, derived from its architecture alone.

The set is closed: a checkpoint may only have names in `expected_weights`, `fused_experts`, `stacked_experts` and
`droppable`, and names of derived buffers. Names are the names that transformers 5 writes, except for experts:
transformers stores two 3-D tensors per layer, and the schema lists experts one by one, as compressed-tensors does.

    stored   layers.N.experts.gate_up_proj [e, 2i, h]: for each expert, rows [0:i] of the gate, then [i:2i] of the up
             layers.N.experts.down_proj    [e, h, i]
    or       layers.N.experts.gate_proj, up_proj [e, i, h] in place of gate_up_proj, as MLX stores them
    listed   layers.N.experts.E.gate_proj.weight [i, h], up_proj.weight [i, h], down_proj.weight [h, i]

Letters: h hidden_size, i an MLP's width, e experts, p width of a per-layer embedding.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

from g4convert.gemma4.architecture import Architecture
from g4convert.gemma4.parts import Drafter, Experts, Layer, TextModel, VisionTower
from g4convert.gemma4.roles import Expected, Role
from g4convert.gemma4.towers import audio_tensors, vision_tensors

Named = Iterator[tuple[str, Expected]]

# Buffers that loaders compute from the config; transformers no longer stores them, but older and other writers do.
_DERIVED = re.compile(
    r"(^|\.)rotary_emb\.(\w+_)?inv_freq$"
    r"|^embed_tokens(_per_layer)?\.embed_scale$"
    r"|^audio_tower\.(rel_pos_enc\.inv_timescales|layers\.\d+\.self_attn\.softcap)$"
)


class ExtraKind(StrEnum):
    """Reason to drop a source tensor; the conversion checks it before it drops the tensor."""

    TIED = "tied"
    """A stored copy of a tied tensor: it must equal its twin."""
    ONES = "ones"
    """The weight of a norm that has no weight in Gemma 4: it must be all ones."""
    ZEROS = "zeros"
    """The bias of a Linear that has none in Gemma 4: it must be all zeros."""
    DERIVED = "derived"
    """A buffer that every loader computes from the config."""


@dataclass(frozen=True, slots=True)
class Droppable:
    """A tensor that some writers store and no loader needs.

    Args:
        shape: required shape.
        kind: fact that must hold before the tensor is dropped.
        reason: the same fact, in words.
    """

    shape: tuple[int, ...]
    kind: ExtraKind
    reason: str


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """All experts of a layer in one tensor.

    Args:
        shape: shape of the fused tensor, experts first.
        prefix: `...layers.N.experts.`, the start of the single experts' names.
        projections: projections in each expert's part, in order, with equal numbers of rows.
    """

    shape: tuple[int, int, int]
    prefix: str
    projections: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the single weights, in their order in the fused tensor."""
        return tuple(f"{self.prefix}{e}.{p}.weight" for e in range(self.shape[0]) for p in self.projections)


def expected_weights(architecture: Architecture) -> Mapping[str, Expected]:
    """Return canonical name -> expected shape and kind, in the order of a forward pass."""
    return _expected(architecture)


def fused_experts(architecture: Architecture) -> Mapping[str, FusedExperts]:
    """Return stored name -> fused experts, in the form of transformers; empty without experts."""
    experts, h = architecture.text.experts, architecture.text.hidden_size
    if experts is None:
        return {}
    e, i = experts.count, experts.intermediate_size
    fused: dict[str, FusedExperts] = {}
    for n in range(len(architecture.text.layers)):
        prefix = f"{architecture.text_prefix}layers.{n}.experts."
        fused[f"{prefix}gate_up_proj"] = FusedExperts((e, 2 * i, h), prefix, ("gate_proj", "up_proj"))
        fused[f"{prefix}down_proj"] = FusedExperts((e, h, i), prefix, ("down_proj",))
    return fused


def stacked_experts(architecture: Architecture) -> Mapping[str, FusedExperts]:
    """Return canonical name -> fused experts, with gate and up in separate tensors; empty without experts."""
    return {
        f"{fused.prefix}{projection}": FusedExperts((e, rows // 2, k), fused.prefix, (projection,))
        for fused in fused_experts(architecture).values()
        if len(fused.projections) > 1
        for e, rows, k in (fused.shape,)
        for projection in fused.projections
    }


def droppable(architecture: Architecture) -> Mapping[str, Droppable]:
    """Return canonical name -> tensor that a checkpoint may have and a conversion drops."""
    return _extras(architecture)


def is_derived(body: str) -> bool:
    """Return whether a name without its prefix is that of a buffer that loaders compute from the config."""
    return _DERIVED.search(body) is not None


@lru_cache(maxsize=64)  # a command asks for one architecture many times
def _expected(architecture: Architecture) -> Mapping[str, Expected]:
    return dict(_all_tensors(architecture))


@lru_cache(maxsize=64)
def _extras(architecture: Architecture) -> Mapping[str, Droppable]:
    return dict(_droppables(architecture))


def _all_tensors(architecture: Architecture) -> Named:
    text, prefix = architecture.text, architecture.text_prefix
    h = text.hidden_size
    if drafter := architecture.drafter:
        yield (
            "pre_projection.weight",
            Expected((h, 2 * drafter.backbone_hidden_size), Role.DRAFTER, linear=True),
        )
    for name, expected in _decoder(text):
        yield f"{prefix}{name}", expected
    if not architecture.tied_embeddings:
        yield "lm_head.weight", Expected((text.vocab_size, h), Role.LM_HEAD, linear=True)
    if drafter:
        yield from _drafter(drafter, text)
    if architecture.vision:
        for name, expected in vision_tensors(architecture.vision, h):
            yield f"model.{name}", expected
    if architecture.audio:
        for name, expected in audio_tensors(architecture.audio, h):
            yield f"model.{name}", expected


def _drafter(drafter: Drafter, text: TextModel) -> Named:
    h = text.hidden_size
    yield "post_projection.weight", Expected((drafter.backbone_hidden_size, h), Role.DRAFTER, linear=True)
    if drafter.centroids:
        yield "masked_embedding.centroids.weight", Expected((drafter.centroids, h), Role.DRAFTER, linear=True)
        yield "masked_embedding.token_ordering", Expected((text.vocab_size,), Role.DRAFTER, integer=True)


def _decoder(text: TextModel) -> Named:
    h = text.hidden_size
    yield "embed_tokens.weight", Expected((text.vocab_size, h), Role.EMBEDDING)
    if ple := text.ple:
        width = len(text.layers) * ple.width
        yield "embed_tokens_per_layer.weight", Expected((ple.vocab_size, width), Role.PLE_EMBEDDING)
        yield "per_layer_model_projection.weight", Expected((width, h), Role.PLE_PROJECTION, linear=True)
        yield "per_layer_projection_norm.weight", Expected((ple.width,), Role.NORM)
    same = cache(lambda layer: tuple(_layer(text, layer)))  # layers come in two or three kinds
    for n, layer in enumerate(text.layers):
        for name, expected in same(layer):
            yield f"layers.{n}.{name}", expected
    yield "norm.weight", Expected((h,), Role.NORM)


def _layer(text: TextModel, layer: Layer) -> Named:
    h = text.hidden_size
    norm = Expected((h,), Role.NORM)
    yield "input_layernorm.weight", norm
    yield from _attention(text, layer)
    yield "post_attention_layernorm.weight", norm
    yield "pre_feedforward_layernorm.weight", norm
    yield from _gated_mlp("mlp.", h, layer.intermediate_size, Role.MLP)
    if text.experts:
        yield "post_feedforward_layernorm_1.weight", norm
        yield "router.scale", Expected((h,), Role.ROUTER)
        yield "router.proj.weight", Expected((text.experts.count, h), Role.ROUTER, linear=True)
        yield "router.per_expert_scale", Expected((text.experts.count,), Role.ROUTER)
        yield "pre_feedforward_layernorm_2.weight", norm
        yield from _experts(text.experts, h)
        yield "post_feedforward_layernorm_2.weight", norm
    yield "post_feedforward_layernorm.weight", norm
    if text.ple:
        p = text.ple.width
        yield "per_layer_input_gate.weight", Expected((p, h), Role.PLE_PROJECTION, linear=True)
        yield "per_layer_projection.weight", Expected((h, p), Role.PLE_PROJECTION, linear=True)
        yield "post_per_layer_input_norm.weight", norm
    yield "layer_scalar", Expected((1,), Role.SCALAR)


def _attention(text: TextModel, layer: Layer) -> Named:
    h, q, kv = text.hidden_size, text.heads * layer.head_dim, layer.kv_heads * layer.head_dim
    kv_role = Role.KV_SHARED if layer.kv_shared else Role.ATTENTION
    rows = [("q_proj", q, h, Role.ATTENTION), ("k_proj", kv, h, kv_role)]
    if not layer.k_eq_v:
        rows.append(("v_proj", kv, h, kv_role))
    for name, n, k, role in (*rows, ("o_proj", h, q, Role.ATTENTION)):
        optional = role is Role.KV_SHARED
        yield f"self_attn.{name}.weight", Expected((n, k), role, linear=True, optional=optional)
        if text.attention_bias:
            yield f"self_attn.{name}.bias", Expected((n,), role, optional=optional)
    yield "self_attn.q_norm.weight", Expected((layer.head_dim,), Role.NORM)
    k_norm = Expected((layer.head_dim,), Role.KV_SHARED if layer.kv_shared else Role.NORM, optional=layer.kv_shared)
    yield "self_attn.k_norm.weight", k_norm


def _gated_mlp(prefix: str, h: int, i: int, role: Role) -> Named:
    wide, narrow = Expected((i, h), role, linear=True), Expected((h, i), role, linear=True)
    yield f"{prefix}gate_proj.weight", wide
    yield f"{prefix}up_proj.weight", wide
    yield f"{prefix}down_proj.weight", narrow


def _experts(experts: Experts, h: int) -> Named:
    expert = tuple(_gated_mlp("", h, experts.intermediate_size, Role.EXPERTS))
    for e in range(experts.count):
        for name, expected in expert:
            yield f"experts.{e}.{name}", expected


def _droppables(architecture: Architecture) -> Iterator[tuple[str, Droppable]]:
    text, prefix = architecture.text, architecture.text_prefix
    if architecture.tied_embeddings:
        reason = "the output head is tied to the embedding"
        yield "lm_head.weight", Droppable((text.vocab_size, text.hidden_size), ExtraKind.TIED, reason)
    for n, layer in enumerate(text.layers):
        yield f"{prefix}layers.{n}.self_attn.v_norm.weight", _ones(layer.head_dim)
        if text.experts:
            yield f"{prefix}layers.{n}.router.norm.weight", _ones(text.hidden_size)
    for name, part in (("embed_vision", architecture.vision), ("embed_audio", architecture.audio)):
        if part:
            yield f"model.{name}.embedding_pre_projection_norm.weight", _ones(part.output_size)
    if isinstance(architecture.vision, VisionTower):
        for n in range(architecture.vision.layers):
            name = f"model.vision_tower.encoder.layers.{n}.self_attn.v_norm.weight"
            yield name, _ones(architecture.vision.head_dim)
    yield from _biases(expected_weights(architecture))


def _biases(expected: Mapping[str, Expected]) -> Iterator[tuple[str, Droppable]]:
    """Yield the bias of every Linear that has none; of single experts, no writer stores them."""
    reason = "this Linear has no bias in Gemma 4; zeros change nothing"
    for name, tensor in expected.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        if tensor.linear and tensor.role is not Role.EXPERTS and bias not in expected:
            yield bias, Droppable(tensor.shape[:1], ExtraKind.ZEROS, reason)


def _ones(size: int) -> Droppable:
    return Droppable((size,), ExtraKind.ONES, "this norm has no weight in Gemma 4; ones change nothing")
