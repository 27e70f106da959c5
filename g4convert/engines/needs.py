"""Needs of engines: a model class that they know, and the keys of a config that they read before any weight.

If a need is not met, the engine stops before it reads a weight, whatever is packed. Files below are under
`vllm/model_executor/` of vLLM 0.33.0 and under `sglang/srt/` of SGLang 0.5.23.

    heads        configs/model_config.py:1341 reads one `head_dim` and :1548 one `num_key_value_heads` for all layers.
                 transformers' config raises AmbiguousGlobalPerLayerAttributeError where they differ. Only models with
                 a `text_config` are made alike beforehand (utils/hf_transformers/config.py:66, :115)
    vision       vLLM builds it whatever `vision_config` says (models/gemma4_mm.py:1102, models/gemma4_unified.py:272),
                 SGLang builds a tower (models/gemma4_mm.py:203); unified models may have none there
    soft tokens  vLLM reads how many embeddings a picture has (models/gemma4_mm.py:279, models/gemma4_unified.py:174);
                 transformers' config has no default
    class        none for Gemma4UnifiedForCausalLM (vLLM's models/registry.py:117, EntryClass of SGLang's models). Both
                 would run transformers' own class, in a backend for any model that no contract covers
    unified      SGLang reads the config of a unified model as one of a model with towers
                 (utils/hf_transformers/common.py:270), whose defaults are others, or which has no such key
"""

from collections.abc import Iterator, Mapping
from typing import Final

from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.gemma4 import UNIFIED_TEXT, Architecture, AudioEmbedder, VisionEmbedder

_WHOLE: Final = Remedy("quantize the whole model without `--layout text-only`")
_HEADS: Final = Reason(
    "layers with heads of several sizes, which SGLang takes only below a `text_config`: stops with an error",
    source="configs/model_config.py:1341",
)
_NO_VISION: Final = "a multimodal model without a `vision_config`: stops with an error"
_TOWER: Final = Remedy("put the vision part back, with its `vision_config`")
_ALONE: Final = Remedy("quantize the decoder alone, with `--layout text-only`")
_TEXT_ONLY: Final = Remedy("quantize the source with `--layout text-only`, which writes Gemma4ForCausalLM")
_SOFT_TOKENS: Final[Mapping[str, str]] = {
    "vision_config.default_output_length": "models/gemma4_mm.py:279",
    "vision_config.num_soft_tokens": "models/gemma4_unified.py:174",
}
"""Key -> the line of vLLM that reads it."""
_RELEASED_SOFT_TOKENS: Final = 280
_READ_AS_TOWERS: Final = "utils/hf_transformers/common.py:270"


def vllm_needs(architecture: Architecture) -> Iterator[Remark]:
    """Yield what a model lacks for vLLM to start with it."""
    if architecture.model_type == UNIFIED_TEXT:
        yield _no_class("models/registry.py:117")
    if architecture.is_composite and not architecture.has_vision:
        place = "models/gemma4_unified.py:273" if architecture.is_unified else "models/gemma4_mm.py:1102"
        yield Remark(Topic.MODEL, "", Reason(_NO_VISION, source=place), (_ALONE, _TOWER))
    for key in architecture.left_out:
        if source := _SOFT_TOKENS.get(key):
            yield _lacking({key: _RELEASED_SOFT_TOKENS}, "stops with an error", source)


def sglang_needs(architecture: Architecture) -> Iterator[Remark]:
    """Yield what a model lacks for SGLang to start with it."""
    heads = {(layer.head_dim, layer.kv_heads) for layer in architecture.text.layers}
    if not (architecture.is_composite or architecture.is_assistant) and len(heads) > 1:
        yield Remark(Topic.MODEL, "", _HEADS, (_WHOLE,))
    elif architecture.model_type == UNIFIED_TEXT:
        yield _no_class("models/gemma4_unified.py:439")
    if architecture.is_composite and not architecture.is_unified and not architecture.has_vision:
        yield Remark(Topic.MODEL, "", Reason(_NO_VISION, source="models/gemma4_mm.py:203"), (_TOWER,))
    values = dict(_read_as_towers(architecture))
    if missing := {key: values[key] for key in architecture.left_out if key in values}:
        yield _lacking(missing, "SGLang reads it as a model with towers, whose values are others", _READ_AS_TOWERS)


def _no_class(source: str) -> Remark:
    text = "no class Gemma4UnifiedForCausalLM, and the backend that would run transformers' own class is not judged"
    return Remark(Topic.MODEL, "", Reason(text, source=source), (_TEXT_ONLY,))


def _read_as_towers(architecture: Architecture) -> Iterator[tuple[str, int]]:
    """Yield the keys that SGLang needs in the config of a unified model, with their values."""
    yield "text_config.hidden_size_per_layer_input", 0
    vision, audio = architecture.vision, architecture.audio
    if isinstance(vision, VisionEmbedder):
        yield "vision_config.model_patch_size", vision.model_patch_size
        yield "vision_config.mm_embed_dim", vision.hidden_size
        yield "vision_config.mm_posemb_size", vision.position_embedding_size
        yield "vision_config.output_proj_dims", vision.output_size
    if isinstance(audio, AudioEmbedder):
        yield "audio_config.output_proj_dims", audio.output_size


def _lacking(missing: Mapping[str, int], then: str, source: str) -> Remark:
    """Return a remark on keys that a config lacks.

    Args:
        missing: key, as `section.key` -> its value.
        then: what the engine does without.
        source: place where the engine reads them.
    """
    sections: dict[str, list[str]] = {}
    for place, value in missing.items():
        section, _, key = place.partition(".")
        sections.setdefault(section, []).append(f'"{key}": {value}')
    lines = " and ".join(f"`{', '.join(of)}` in {section}" for section, of in sections.items())
    reason = Reason(f"config.json has no {', '.join(missing)}: {then}", source=source)
    return Remark(Topic.MODEL, "", reason, (Remedy(f"write {lines} of config.json"),))
