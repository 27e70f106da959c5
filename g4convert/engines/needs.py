"""Needs of engines: a model class that they know, and the keys of a config that they read before any weight.

If a need is not met, the engine stops before it reads a weight, whatever is packed. Files below are under
`vllm/model_executor/` of vLLM 0.33.0 and under `sglang/srt/` of SGLang 0.5.23.

    heads        configs/model_config.py:1341 reads one `head_dim` and :1548 one `num_key_value_heads` for all layers.
                 transformers' config raises AmbiguousGlobalPerLayerAttributeError where they differ. Only models with
                 a `text_config` are made alike beforehand (utils/hf_transformers/config.py:66, :115)
    vision       vLLM builds it whatever `vision_config` says (models/gemma4_mm.py:1102, models/gemma4_unified.py:272),
                 SGLang builds a tower (models/gemma4_mm.py:203); unified models may have none there
"""

from collections.abc import Iterator
from typing import Final

from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.gemma4 import Architecture

_WHOLE: Final = Remedy("quantize the whole model without `--layout text-only`")
_HEADS: Final = Reason(
    "layers with heads of several sizes, which SGLang takes only below a `text_config`: stops with an error",
    source="configs/model_config.py:1341",
)
_NO_VISION: Final = "a multimodal model without a `vision_config`: stops with an error"
_TOWER: Final = Remedy("put the vision part back, with its `vision_config`")
_ALONE: Final = Remedy("quantize the decoder alone, with `--layout text-only`")


def vllm_needs(architecture: Architecture) -> Iterator[Remark]:
    """Yield what a model lacks for vLLM to start with it."""
    if architecture.is_composite and not architecture.has_vision:
        place = "models/gemma4_unified.py:273" if architecture.is_unified else "models/gemma4_mm.py:1102"
        yield Remark(Topic.MODEL, "", Reason(_NO_VISION, source=place), (_ALONE, _TOWER))


def sglang_needs(architecture: Architecture) -> Iterator[Remark]:
    """Yield what a model lacks for SGLang to start with it."""
    heads = {(layer.head_dim, layer.kv_heads) for layer in architecture.text.layers}
    if not (architecture.is_composite or architecture.is_assistant) and len(heads) > 1:
        yield Remark(Topic.MODEL, "", _HEADS, (_WHOLE,))
    if architecture.is_composite and not architecture.is_unified and not architecture.has_vision:
        yield Remark(Topic.MODEL, "", Reason(_NO_VISION, source="models/gemma4_mm.py:203"), (_TOWER,))
