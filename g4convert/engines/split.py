"""The part of a module that one GPU holds, split as vLLM and SGLang split it.

    attention        whole heads; key and value heads are repeated if there are more GPUs than such heads (vLLM 0.33
                     `models/gemma4.py:386`, SGLang 0.5.23 `models/gemma4_causal.py:342`)
    o_proj, down     along in_features
    the rest         along out_features, each shard of a fused module separately

The files are under `vllm/model_executor/` and `sglang/srt/`. Where values are keys, engines build both projections.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from g4convert.engines.limits import Partition
from g4convert.engines.module import Cut, Module
from g4convert.engines.reason import Reason
from g4convert.gemma4 import Architecture, AudioTower, VisionTower
from g4convert.names import Name


@dataclass(frozen=True, slots=True)
class Uneven:
    """The reason why a module cannot be split over a number of GPUs."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class _Heads:
    queries: int
    keys: int
    width: int


def part_of(
    module: Module, architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], tp: int
) -> Partition | Uneven:
    """Return the part of a Linear on each of `tp` GPUs, or the reason why it cannot be split.

    Args:
        module: module of an engine; at least one of its shards is stored.
        architecture: architecture of the checkpoint.
        shapes: canonical module -> [out_features, in_features], for stored modules.
        tp: tensor parallel size.
    """
    sizes = [shapes[shard] for shard in module.shards if shard in shapes]
    k = sizes[0][1]
    if Name(module.name).last == "qkv_proj":
        return _attention(_heads(module, architecture), k, tp)
    if module.cut is Cut.IN:
        share = Partition(sizes[0][0], k // tp, k)
        return share if k % tp == 0 else uneven(f"{k} inputs", tp)
    ways = tp if module.cut is Cut.OUT else 1
    if odd := [n for n, _ in sizes if n % ways]:
        return uneven(f"{odd[0]} outputs", tp)
    return Partition(sum(n for n, _ in sizes) // ways, k, k)


def uneven(what: str, tp: int) -> Uneven:
    """Return the reason that something cannot be split over `tp` GPUs.

    Args:
        what: name of the thing, such as `704 inputs`.
        tp: tensor parallel size.
    """
    return Uneven(Reason(f"{what} cannot be split ", share=f"over {tp} GPUs"))


def _attention(heads: _Heads, k: int, tp: int) -> Partition | Uneven:
    if heads.queries % tp:
        return uneven(f"{heads.queries} heads", tp)
    if max(heads.keys, tp) % min(heads.keys, tp):
        return uneven(f"{heads.keys} heads of keys", tp)
    return Partition((heads.queries // tp + 2 * max(1, heads.keys // tp)) * heads.width, k, k)


def _heads(module: Module, architecture: Architecture) -> _Heads:
    """Return the heads of the attention that a fused projection belongs to."""
    vision, audio = architecture.vision, architecture.audio
    if "vision_tower" in module.name and isinstance(vision, VisionTower):
        return _Heads(vision.heads, vision.kv_heads, vision.head_dim)
    if "audio_tower" in module.name and isinstance(audio, AudioTower):
        return _Heads(audio.heads, audio.heads, audio.hidden_size // audio.heads)
    layer = architecture.text.layers[Name(module.name).layer or 0]
    return _Heads(architecture.text.heads, layer.kv_heads, layer.head_dim)
