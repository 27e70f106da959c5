"""Spellings of Gemma 4's tensor names by other programs, and the rules from each to the canonical name.

A name is split into   wrappers . prefix . body   and only the body identifies the tensor: no two canonical names have
the same body. To resolve a source name, wrappers and prefix are removed (`WRAPPERS`, `_PREFIXES`). If the body is not
canonical, each rule of `BODIES` is applied to it once, in order. The result does not depend on other names in the
checkpoint. No rule moves a number, so names that differ only in their numbers resolve alike.

Names of merged tensors (`qkv_proj`, `w13_weight`, shared clip limits) are left out on purpose: an engine may have
reordered their rows, and no header would show it.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpellingRule:
    """A rule from a foreign spelling to the canonical spelling.

    Args:
        name: name of the habit in reports; several rules may belong to one habit.
        description: description of the habit, in one line.
        pattern: pattern of the foreign spelling.
        replacement: the canonical spelling.
    """

    name: str
    description: str
    pattern: re.Pattern[str]
    replacement: str


def _habit(name: str, description: str, *pairs: tuple[str, str]) -> tuple[SpellingRule, ...]:
    """Return the rules of one habit, from pairs of pattern and replacement."""
    return tuple(SpellingRule(name, description, re.compile(pattern), new) for pattern, new in pairs)


WRAPPERS = (
    *_habit("compiled", "saved from torch.compile", (r"(^|\.)_orig_mod\.", r"\1")),
    *_habit("peft", "saved from a merged adapter", (r"^base_model\.model\.", "")),
    *_habit("parallel", "saved from DataParallel or DDP", (r"^module\.", "")),
    *_habit("fabric", "saved from Lightning Fabric", (r"^_forward_module\.", "")),
    *_habit("value-head", "saved with TRL's wrapper of a model with a value head", (r"^pretrained_model\.", "")),
    *_habit("xla", "saved from torch_xla", (r"(^|\.)_orig_module\.", r"\1")),
    *_habit("fsdp", "saved from FSDP", (r"(^|\.)_fsdp_wrapped_module\.", r"\1")),
    *_habit("checkpointed", "saved while checkpointing", (r"(^|\.)_checkpoint_wrapped_module\.", r"\1")),
)
"""Rules that remove wrappers, applied until no wrapper is left."""

_PREFIXES: Mapping[str, str] = {
    "": "saved from the inner model",
    "model.": "names of a text-only model",
    "language_model.": "the decoder without `model.`, as SGLang holds it",
    "model.language_model.": "names of a multimodal model",
    "language_model.model.": "the decoder as vLLM and older multimodal classes hold it",
    "model.language_model.model.": "a causal language model inside a multimodal one",
    "model.model.": "the model inside another one",
}
"""Known prefix -> description. Any run of `model.` and `language_model.` is a prefix; foreign prefixes are reported."""

_PREFIX = re.compile(r"(?:(?:language_)?model\.)*")

_CLIPPABLE = "[qkvo]_proj|gate_proj|up_proj|down_proj|post|ffw_layer_[12]|linear_start|linear_end"

_TOWER = r"^((?:vision|audio)_tower\..*)"

BODIES = (
    *_habit(
        "moe-experts",
        "experts inside `moe`, as engines hold them",
        (r"\.moe\.experts\.", ".experts."),
    ),
    *_habit(
        "moe-module",
        "router and merged experts inside `moe`, as engines hold them",
        (r"\.moe\.router\.", ".router."),
        (r"\.moe\.(gate_up|down)_proj(?:\.weight)?$", r".experts.\1_proj"),
        (r"\.moe\.per_expert_scale$", ".router.per_expert_scale"),
    ),
    *_habit(
        "mlx-experts",
        "experts as MLX holds them, gate and up apart",
        (r"\.experts\.switch_glu\.(gate|up|down)_proj\.weight$", r".experts.\1_proj"),
    ),
    *_habit(
        "expert-weight",
        "fused experts with `.weight`",
        (r"\.experts\.(gate_up|gate|up|down)_proj\.weight$", r".experts.\1_proj"),
    ),
    *_habit(
        "unified-modules",
        "unified embedders as transformers holds them in memory",
        (r"^embed_vision\.(patch_ln[12]|patch_dense|pos_embedding|pos_norm)\b", r"vision_embedder.\1"),
        (r"^embed_vision\.multimodal_embedder\.", "embed_vision."),
    ),
    *_habit(
        "unified-audio",
        "a sound embedder named like that of pictures",
        (r"^embed_audio\.multimodal_embedder\.", "embed_audio."),
    ),
    *_habit(
        "sglang-embedders",
        "SGLang's embedders",
        (r"^(embed_vision|embed_audio)\.proj\.", r"\1.embedding_projection."),
        (r"^(embed_vision|embed_audio)\.pre_proj_norm\.", r"\1.embedding_pre_projection_norm."),
    ),
    *_habit(
        "sglang-audio",
        "SGLang's audio tower",
        (r"^(audio_tower\.conformer\.\d+)\.norm\.", r"\1.norm_out."),
        (r"^audio_tower\.conformer\.", "audio_tower.layers."),
        (r"^(audio_tower\.subsample_conv_projection)\.conv_([01])\.", r"\1.layer\2."),
        (r"\.attention\.attn\.relative_position_embedding\.pos_proj\.", ".self_attn.relative_k_proj."),
        (r"\.attention\.attn\.", ".self_attn."),
        (r"\.attention\.post\.", ".self_attn.post."),
        (r"\.attention\.pre_attn_norm\.", ".norm_pre_attn."),
        (r"\.attention\.post_norm\.", ".norm_post_attn."),
        (r"\.ffw_layer_start\.", ".feed_forward1."),
        (r"\.ffw_layer_end\.", ".feed_forward2."),
    ),
    *_habit(
        "sglang-towers",
        "SGLang's towers: parts of merged Linears",
        (rf"{_TOWER}\.(?:qkv|gate_up)\.(q|k|v|gate|up)_proj\.weight$", r"\1.\2_proj.linear.weight"),
        (rf"{_TOWER}\.(?:qkv|gate_up)\.(q|k|v|gate|up)_(output_(?:min|max))$", r"\1.\2_proj.\3"),
    ),
    *_habit(
        "tower-linear",
        "towers without the clipping wrapper",
        (rf"{_TOWER}\.({_CLIPPABLE})\.weight$", r"\1.\2.linear.weight"),
    ),
    *_habit(
        "sglang-drafter",
        "SGLang's drafter",
        (r"^(centroids\.weight|token_ordering)$", r"masked_embedding.\1"),
    ),
)
"""Rules that are applied to a body that is not canonical, once each, in order."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """The parts of a source name.

    Args:
        body: part that identifies the tensor; canonical if a rule leads to a canonical body.
        prefix: part before the body; empty, or ends with a dot.
        rules: the rules that were applied, of wrappers and of bodies.
    """

    body: str
    prefix: str
    rules: tuple[SpellingRule, ...]


def body_of(name: str) -> str:
    """Return a canonical name without its prefix."""
    return name.removeprefix(prefix_of(name))


def spell(name: str, known: Container[str]) -> Spelling:
    """Split a source name into its parts.

    Args:
        name: stored name, or its kind (with numbers set to 0).
        known: bodies of the canonical names, or their kinds.
    """
    rules: list[SpellingRule] = []
    unwrapped = _unwrap(name, rules)
    prefix = prefix_of(unwrapped)
    body = unwrapped.removeprefix(prefix)
    if body in known:
        return Spelling(body, prefix, tuple(rules))
    for rule in BODIES:
        body = _apply(rule, body, rules)
        if body in known:
            break
    return Spelling(body, prefix, tuple(rules))


def _unwrap(name: str, rules: list[SpellingRule]) -> str:
    before = ""
    while name != before:
        before = name
        for rule in WRAPPERS:
            name = _apply(rule, name, rules)
    return name


def _apply(rule: SpellingRule, name: str, rules: list[SpellingRule]) -> str:
    changed, count = rule.pattern.subn(rule.replacement, name)
    if count and rule not in rules:
        rules.append(rule)
    return changed


def prefix_of(name: str) -> str:
    """Return the prefix of a name without wrappers: a run of `model.` and `language_model.`, perhaps empty."""
    match = _PREFIX.match(name)
    return match.group() if match else ""


def prefix_habit(prefix: str) -> tuple[str, str]:
    """Return name and description of the habit of using a prefix that is not canonical."""
    description = _PREFIXES.get(prefix, "a model inside other models")
    return (f"prefix {prefix}" if prefix else "no prefix"), description
