r"""Contracts of vLLM 0.33.0, and 0.23.0, the first release with Gemma 4 Unified (0.22.1 falls back to transformers).

Files below are under `vllm/model_executor/`, with line numbers of 0.33.0.

    names       models/gemma4_mm.py:1066 and models/gemma4_unified.py:242 rename tensors, and with them plain entries
                (layers/quantization/compressed_tensors/compressed_tensors.py:129): `model.language_model.` becomes
                `language_model.model.`, `model.vision_tower` loses its `model.`. Patterns are not renamed. The
                text-only class keeps `model.` (models/gemma4.py:1405)
    fused       models/gemma4.py:86 and :1425: q, k, v and gate, up. Layers that share keys and values have only a
                q_proj (:412); their k_proj, v_proj and k_norm are dropped (:118). Where values are keys, k_proj fills
                both shards and a stored v_proj is an error
    ignore      layers/quantization/utils/config_utils.py:384: a fused module's own name first, then all shards or
                none; equality or `re.match` (:432). No class names
    targets     layers/quantization/compressed_tensors/utils.py:73: own name, all shards, or a part of the class name,
                in this order; the config's first target where several fit. That target's group builds the module
    experts     layers/quantization/compressed_tensors/compressed_tensors_moe/compressed_tensors_moe.py:36: the three
                projections of expert 0 stand for all experts
    drafter     models/gemma4_mtp.py: modules below `draft_model`, tensors below `model`. The drafter's config is read
                anew (models/utils.py:985), without renames and fused names: vLLM looks up `gate_up_proj` itself
    head        compressed_tensors.py, `get_quant_method`: as a Linear; `tie_word_embeddings` is read at the top level
                of the config (config/vllm.py:1012)
    tables      compressed_tensors.py, `get_quant_method`: int weights without zero points, by groups or rows, for
                lookups only: a table that is also the head must be plain. The lookup
                (layers/quantization/compressed_tensors/compressed_tensors_embedding.py) is the same in 0.23.0
    missing     model_loader/default_loader.py:512: not tracked for quantized models

0.23.0 differs as `_OLD` says: experts lie below `moe`; every layer has a whole qkv_proj; a pattern that fits the fused
module's own name has no effect; the class is tried before the shards; drafters have no quantization. Between the
commits of pull requests 44429 and 44571, which are in no release, the unified `patch_dense` had no prefix, so that no
entry could name it.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from g4convert.engines.contract import Contract, OnMissing, OnUnknown
from g4convert.engines.matching import By, Matching
from g4convert.engines.module import Accepts, Cut, ModuleRule, Renames
from g4convert.engines.needs import vllm_needs
from g4convert.engines.reason import Reason
from g4convert.engines.spellings import Spellings
from g4convert.gemma4 import Architecture

_FUSED: Final = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

_TOWERS: Final[Renames] = (
    ("model.vision_tower", "vision_tower"),
    ("model.embed_vision", "embed_vision"),
    ("model.audio_tower.", "audio_tower."),
    ("model.embed_audio.", "embed_audio."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model", "language_model.model"),
)
_UNIFIED: Final[Renames] = (
    ("model.embed_audio.", "embed_audio."),
    ("model.embed_vision.", "embed_vision."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_embedder.", "vision_embedder."),
    ("lm_head.", "language_model.lm_head."),
    ("model", "language_model.model"),
)
_TEXT: Final[Renames] = (("model.language_model.", "model."),)
_DRAFTER_NAMES: Final[Renames] = (
    ("model.", "draft_model."),
    ("pre_projection.", "draft_model.pre_projection."),
    ("post_projection.", "draft_model.post_projection."),
)
_DRAFTER_PATHS: Final[Renames] = (("draft_model.", "model."),)

_ORDER: Final = (By.NAME, By.SHARDS, By.CLASS)
_OLD_ORDER: Final = (By.NAME, By.CLASS, By.SHARDS)
_PLAIN: Final = Accepts.PLAIN
_ATTENTION: Final = r"(.*\blayers\.\d+\.self_attn)"
_REPLICATED: Final = ("ReplicatedLinear",)
_COLUMN: Final = ("ColumnParallelLinear",)
_ROW: Final = ("RowParallelLinear",)
_TABLE: Final = ("VocabParallelEmbedding",)

_PACKED_TABLE: Final = Reason("packed by a target that names it, symmetric", source="compressed_tensors_embedding.py")

_UNTIED_TABLE: Final = ModuleRule(r".*\bembed_tokens", _TABLE, note=_PACKED_TABLE, cut=Cut.OUT)
_TIED_TABLE: Final = replace(
    _UNTIED_TABLE, accepts=_PLAIN, note=Reason("tied with the head, which needs its `weight`: AttributeError")
)
_UNTIED_HEAD: Final = ModuleRule(
    r".*\blm_head",
    ("ParallelLMHead",),
    note=Reason("packed by a target that names it: the class name has no `Linear` in it"),
    cut=Cut.OUT,
)
_TIED_HEAD: Final = replace(
    _UNTIED_HEAD,
    accepts=_PLAIN,
    note=Reason("tied with the embedding; the class name has no `Linear` in it"),
)
_DECODER: Final = (
    ModuleRule(_ATTENTION + r"\.o_proj", _ROW, cut=Cut.IN),
    ModuleRule(
        r"(.*\blayers\.\d+\.mlp)\.(gate|up)_proj", ("MergedColumnParallelLinear",), r"\1.gate_up_proj", cut=Cut.OUT
    ),
    ModuleRule(r".*\blayers\.\d+\.mlp\.down_proj", _ROW, cut=Cut.IN),
    ModuleRule(r".*\.per_layer_(input_gate|projection)", _REPLICATED),
    ModuleRule(r".*\.per_layer_model_projection", _COLUMN, cut=Cut.OUT),
    ModuleRule(
        r".*\.router\.proj",
        ("GateLinear",),
        configured=False,
        accepts=_PLAIN,
        note=Reason("GateLinear has no quantization config", source="models/gemma4.py:325"),
    ),
    ModuleRule(r".*\bembed_tokens_per_layer", _TABLE, note=_PACKED_TABLE, cut=Cut.OUT),
)
_QKV: Final = ModuleRule(
    _ATTENTION + r"\.[qkv]_proj", ("QKVParallelLinear",), r"\1.qkv_proj", cut=Cut.OUT, kv_shared=False
)
_EXPERTS: Final = r"(.*\blayers\.\d+)\.experts\.\d+\.(gate|up|down)_proj"
_MEDIA: Final = (
    ModuleRule(
        r"vision_tower\.patch_embedder\.input_proj",
        _REPLICATED,
        accepts=_PLAIN,
        note=Reason("the forward pass reads the dtype of its `weight`, which a packed one has not"),
    ),
    ModuleRule(r"(vision|audio)_tower\..*", _REPLICATED, note=Reason("loads packed where its sizes allow")),
)
_EMBEDDERS: Final = (
    ModuleRule(
        r"embed_vision\.embedding_projection",
        _REPLICATED,
        accepts=_PLAIN,
        note=Reason("the first image reads the dtype of its `weight`", source="models/gemma4_mm.py:2069"),
    ),
    ModuleRule(r"embed_audio\.embedding_projection", _REPLICATED, note=Reason("loads packed; sound was not run")),
)
_UNIFIED_EMBEDDERS: Final = (
    ModuleRule(r"vision_embedder\.patch_dense", _COLUMN, cut=Cut.OUT, note=Reason("loads packed; images were not run")),
    ModuleRule(
        r"embed_(vision|audio)\.embedding_projection",
        _REPLICATED,
        configured=False,
        accepts=_PLAIN,
        note=Reason("built without a quantization config", source="models/gemma4_unified.py:279, :288"),
    ),
)
_DRAFTER: Final = (
    ModuleRule(_ATTENTION + r"\.q_proj", _COLUMN, cut=Cut.OUT),
    ModuleRule(_ATTENTION + r"\.[kv]_proj", (), None, refused=True),
    ModuleRule(r".*\bpre_projection", _COLUMN, cut=Cut.OUT),
    ModuleRule(r".*\bpost_projection", _ROW, cut=Cut.IN),
    ModuleRule(
        r"masked_embedding\.centroids",
        ("Linear",),
        configured=False,
        accepts=_PLAIN,
        note=Reason("a plain nn.Linear", source="models/gemma4_mtp.py:87"),
    ),
)

_NEW: Final = (
    _QKV,
    ModuleRule(_ATTENTION + r"\.q_proj", _COLUMN, cut=Cut.OUT, kv_shared=True),
    ModuleRule(_ATTENTION + r"\.[kv]_proj", (), None, kv_shared=True),
    ModuleRule(_EXPERTS, ("RoutedExperts",), r"\1.experts", cut=Cut.OUT),
)
_OLD: Final = (
    _QKV,
    ModuleRule(
        _ATTENTION + r"\.[qkv]_proj",
        _QKV.classes,
        r"\1.qkv_proj",
        cut=Cut.OUT,
        kv_shared=True,
        note=Reason("built whole; nothing reads its keys and values"),
    ),
    ModuleRule(_EXPERTS, ("FusedMoE",), r"\1.moe.experts", cut=Cut.OUT),
)
_OLD_DRAFTER: Final = tuple(
    replace(rule, configured=False, accepts=_PLAIN, refused=False, note=Reason("0.23 builds drafters unquantized"))
    for rule in (*_DRAFTER, _TIED_TABLE, _TIED_HEAD, *_DECODER)
)


def _rules(architecture: Architecture, layers: Iterable[ModuleRule] = _NEW) -> tuple[ModuleRule, ...]:
    is_tied = architecture.tied_embeddings
    head = _TIED_HEAD if is_tied else _UNTIED_HEAD
    if architecture.is_assistant:
        return (*_DRAFTER, _TIED_TABLE, head, *_DECODER)
    media = _UNIFIED_EMBEDDERS if architecture.is_unified else _EMBEDDERS
    return (*layers, _TIED_TABLE if is_tied else _UNTIED_TABLE, head, *_DECODER, *_MEDIA, *media)


def _oldest_rules(architecture: Architecture) -> tuple[ModuleRule, ...]:
    return _OLD_DRAFTER if architecture.is_assistant else _rules(architecture, _OLD)


def _renames(architecture: Architecture) -> Renames:
    if not architecture.is_composite:
        return _TEXT
    return _UNIFIED if architecture.is_unified else _TOWERS


def _names(architecture: Architecture) -> Renames:
    return _DRAFTER_NAMES if architecture.is_assistant else _renames(architecture)


def _paths(architecture: Architecture) -> Renames:
    return _DRAFTER_PATHS if architecture.is_assistant else ()


def _matching(architecture: Architecture) -> Matching:
    if architecture.is_assistant:
        return Matching(class_contains=True, fused_name=True, order=_ORDER)
    return Matching(fused=_FUSED, renames=_renames(architecture), class_contains=True, fused_name=True, order=_ORDER)


def _oldest_matching(architecture: Architecture) -> Matching:
    if architecture.is_assistant:
        return Matching(class_contains=True, order=_OLD_ORDER)
    return Matching(fused=_FUSED, renames=_renames(architecture), class_contains=True, order=_OLD_ORDER)


_SPELLINGS: Final = Spellings(  # `hf_to_vllm_mapper` of the model classes, which leaves the names after it as they are
    decoder=("model.language_model.", "language_model.model.", "model."),
    media=("model.", ""),
    head=("", "language_model."),
    text=("model.", "model.language_model."),
    drafter=("model.",),
)

CONTRACT: Final = Contract(
    engine="vllm",
    title="vLLM",
    versions="0.33",
    rules=_rules,
    names=_names,
    paths=_paths,
    matching=_matching,
    drops=(
        "k_proj, v_proj and k_norm of layers that share keys and values",
        "any `.bias` and `.g_idx` that has no module, scales of the key/value cache",
        "`embed_vision.embedding.*`, `embed_audio.embedding.*`; `audio_tower.*` and `embed_audio.*` without audio",
        "rotary `inv_freq`",
    ),
    spellings=_SPELLINGS,
    on_unknown=OnUnknown.RAISES,
    on_missing=OnMissing.SILENT,
    ignored=(".bias",),
    blind=(
        "a lost tensor of a quantized checkpoint, also a single expert's or one shard of a fused module",
        "limits of the towers' inputs and outputs that are not there",
        "numbers in `weight_shape`",
    ),
    needs=vllm_needs,
)
"""vLLM 0.33."""

OLDEST: Final = Contract(
    engine="vllm",
    title="vLLM",
    versions="0.23",
    rules=_oldest_rules,
    names=_names,
    paths=_paths,
    matching=_oldest_matching,
    drops=(*CONTRACT.drops, "every tensor of a drafter that fits nothing"),
    spellings=replace(_SPELLINGS, text_head=("", "language_model."), habits=("moe-experts",)),
    on_unknown=OnUnknown.RAISES,
    on_missing=OnMissing.SILENT,
    ignored=(".bias",),
    blind=CONTRACT.blind,
)
"""vLLM 0.23, the oldest release that has Gemma 4 Unified."""
