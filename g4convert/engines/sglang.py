r"""Contract of SGLang 0.5.23.

Files below are under `sglang/srt/`, with line numbers of 0.5.23.

    names       as in the checkpoint, as a module's prefix keeps `model.` (models/gemma4_mm.py:197); experts lie below
                `moe` (models/gemma4_causal.py:649), modules of the audio tower have other names
                (models/gemma4_audio.py; tensors are mapped in models/gemma4_mm.py:766). No entry is renamed: there is
                no `hf_to_sglang_mapper`
    fused       q, k, v and gate, up (models/gemma4_mm.py:160), in every layer, also where keys and values are shared;
                also in the towers (layers/clippable_linear.py), where the name has no `.linear`
    ignore      layers/quantization/compressed_tensors/utils.py:24: plain entries by equality or as the dotted end of
                a name, patterns by `re.match`; all shards or none, unless `ignore` has the fused name itself
    targets     utils.py:103: own name, part of the class name, all shards, in this order, so that `Linear` wins over
                the shards of a fused module; the config's first target where several fit. A Linear that no target
                names is an error
    head        compressed_tensors.py:1095: packed only by a target that names it; a tied head is the embedding unless
                pipeline parallelism separates them (models/gemma4_mm.py:255)
    experts     compressed_tensors.py:883: the three projections of expert 0 stand for all experts
    loading     models/gemma4_mm.py:877: unknown tensors are skipped, missing tensors logged (:1083)
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from g4convert.engines.contract import Contract, OnMissing, OnUnknown
from g4convert.engines.matching import By, Matching
from g4convert.engines.module import Accepts, Cut, ModuleRule, Renames
from g4convert.engines.needs import sglang_needs
from g4convert.engines.reason import Reason
from g4convert.engines.remarks import Remark, Remedy, Topic
from g4convert.engines.spellings import Spellings
from g4convert.gemma4 import Architecture, Role, VisionTower
from g4convert.tensors import DType

_FUSED: Final = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}

_AUDIO: Final = r"model\.audio_tower\.layers\.(\d+)\."
_HEADS: Final[Renames] = (("lm_head.", "model.lm_head."),)
_CONFORMER: Final = r"model.audio_tower.conformer.\1."
_CONFORMER_PATH: Final = r"audio_tower.conformer.\1."
_PLAIN: Final = Accepts.PLAIN
_QKV: Final = ("QKVParallelLinear",)
_MERGED: Final = ("MergedColumnParallelLinear",)
_COLUMN: Final = ("ColumnParallelLinear",)
_ROW: Final = ("RowParallelLinear",)
_REPLICATED: Final = ("ReplicatedLinear",)
_LINEAR: Final = ("Linear",)
_UNMAPPED: Final = Reason(
    "its tensors are mapped as `weight` and `bias` only, packed ones are dropped", source="models/gemma4_mm.py:814"
)

_DECODER: Final = (
    ModuleRule(
        r"(.*\blayers\.\d+\.self_attn)\.[qkv]_proj",
        _QKV,
        r"\1.qkv_proj",
        cut=Cut.OUT,
        kv_shared=False,
    ),
    ModuleRule(
        r"(.*\blayers\.\d+\.self_attn)\.[qkv]_proj",
        _QKV,
        r"\1.qkv_proj",
        cut=Cut.OUT,
        kv_shared=True,
        note=Reason("built whole; nothing reads its keys and values"),
    ),
    ModuleRule(r".*\blayers\.\d+\.self_attn\.o_proj", _ROW, cut=Cut.IN),
    ModuleRule(r"(.*\blayers\.\d+\.mlp)\.(gate|up)_proj", _MERGED, r"\1.gate_up_proj", cut=Cut.OUT),
    ModuleRule(r".*\blayers\.\d+\.mlp\.down_proj", _ROW, cut=Cut.IN),
    ModuleRule(r".*\.per_layer_(input_gate|projection|model_projection)", _REPLICATED),
    ModuleRule(
        r".*\.router\.proj",
        _REPLICATED,
        configured=False,
        accepts=_PLAIN,
        note=Reason("built without a quantization config", source="models/gemma4_causal.py:198"),
    ),
    ModuleRule(
        r"(.*\blayers\.\d+)\.experts\.\d+\.(gate|up|down)_proj",
        ("FusedMoE",),
        r"\1.moe.experts",
        cut=Cut.OUT,
        accepts=_PLAIN,
        note=Reason(
            "both kernels, Marlin and Triton, assert SiLU at the first forward pass, Gemma has GELU",
            source="compressed_tensors_wNa16_moe.py:454, :558",
        ),
    ),
    ModuleRule(
        r".*\bembed_tokens(_per_layer)?",
        ("Gemma4TextScaledWordEmbedding",),
        configured=False,
        accepts=_PLAIN,
        note=Reason("an embedding without a quantization config"),
        cut=Cut.OUT,
    ),
)
_UNTIED_HEAD: Final = ModuleRule(
    r".*\blm_head", ("ParallelLMHead",), note=Reason("only a target that names it packs it"), cut=Cut.OUT
)
_TIED_HEAD: Final = replace(
    _UNTIED_HEAD, accepts=_PLAIN, note=Reason("tied with the embedding; only a target that names it packs it")
)
_TOWERS: Final = (
    ModuleRule(
        r"model\.vision_tower\.patch_embedder\.input_proj",
        _LINEAR,
        configured=False,
        accepts=_PLAIN,
        note=Reason("a plain nn.Linear", source="models/gemma4_vision.py:427"),
    ),
    ModuleRule(
        r"model\.(vision_tower\.encoder\.layers\.\d+\.self_attn)\.[qkv]_proj\.linear",
        _QKV,
        r"model.\1.qkv_proj",
        r"\1.qkv.qkv_proj",
        cut=Cut.OUT,
        accepts=_PLAIN,
        note=_UNMAPPED,
    ),
    ModuleRule(
        r"model\.(vision_tower\.encoder\.layers\.\d+\.mlp)\.(gate|up)_proj\.linear",
        _MERGED,
        r"model.\1.gate_up_proj",
        r"\1.gate_up.gate_up_proj",
        cut=Cut.OUT,
        accepts=_PLAIN,
        note=_UNMAPPED,
    ),
    ModuleRule(r"model\.vision_tower\..*\.(o_proj|down_proj)\.linear", _ROW, cut=Cut.IN),
    ModuleRule(
        _AUDIO + r"self_attn\.[qkv]_proj\.linear",
        _QKV,
        _CONFORMER + r"attention.attn.qkv_proj",
        _CONFORMER_PATH + r"attention.attn.qkv.qkv_proj",
        cut=Cut.OUT,
        accepts=_PLAIN,
        note=_UNMAPPED,
    ),
    ModuleRule(
        _AUDIO + r"self_attn\.relative_k_proj",
        _COLUMN,
        _CONFORMER + r"attention.attn.relative_position_embedding.pos_proj",
        cut=Cut.OUT,
    ),
    ModuleRule(_AUDIO + r"self_attn\.post\.linear", _ROW, _CONFORMER + r"attention.post.linear", cut=Cut.IN),
    ModuleRule(
        _AUDIO + r"feed_forward1\.(ffw_layer_1)\.linear",
        _COLUMN,
        _CONFORMER + r"ffw_layer_start.\2.linear",
        cut=Cut.OUT,
    ),
    ModuleRule(
        _AUDIO + r"feed_forward1\.(ffw_layer_2)\.linear", _ROW, _CONFORMER + r"ffw_layer_start.\2.linear", cut=Cut.IN
    ),
    ModuleRule(
        _AUDIO + r"feed_forward2\.(ffw_layer_1)\.linear", _COLUMN, _CONFORMER + r"ffw_layer_end.\2.linear", cut=Cut.OUT
    ),
    ModuleRule(
        _AUDIO + r"feed_forward2\.(ffw_layer_2)\.linear", _ROW, _CONFORMER + r"ffw_layer_end.\2.linear", cut=Cut.IN
    ),
    ModuleRule(
        _AUDIO + r"lconv1d\.linear_start\.linear",
        _MERGED,
        _CONFORMER + r"lconv1d.linear_start.linear",
        cut=Cut.OUT,
        accepts=_PLAIN,
        note=Reason(
            "asked for its `weight` while it is built: AttributeError", source="layers/clippable_linear.py:210"
        ),
    ),
    ModuleRule(_AUDIO + r"lconv1d\.linear_end\.linear", _ROW, _CONFORMER + r"lconv1d.linear_end.linear", cut=Cut.IN),
    ModuleRule(r"model\.audio_tower\.(output_proj|subsample_conv_projection\.input_proj_linear)", _ROW, cut=Cut.IN),
    ModuleRule(r"model\.embed_(vision|audio)\.embedding_projection", _REPLICATED),
)
_UNIFIED: Final = (
    ModuleRule(
        r"model\.(vision_embedder\.patch_dense|embed_(vision|audio)\.embedding_projection)",
        _LINEAR,
        configured=False,
        accepts=_PLAIN,
        note=Reason(
            "a plain nn.Linear", source="models/gemma4_unified.py:77, :120", rest="; packed tensors are skipped"
        ),
    ),
)
_DRAFTER: Final = (
    ModuleRule(r"(pre|post)_projection", _REPLICATED),
    ModuleRule(
        r"masked_embedding\.(centroids)",
        _LINEAR,
        r"\1",
        configured=False,
        accepts=_PLAIN,
        note=Reason("a plain nn.Linear", source="models/gemma4_mtp.py:127"),
    ),
)


def _rules(architecture: Architecture) -> tuple[ModuleRule, ...]:
    head = _TIED_HEAD if architecture.tied_embeddings else _UNTIED_HEAD
    return (*(_UNIFIED if architecture.is_unified else _TOWERS), *_DRAFTER, *_DECODER, head)


def _names(architecture: Architecture) -> Renames:
    return _HEADS if architecture.is_composite and not architecture.is_unified else ()


def _paths(architecture: Architecture) -> Renames:
    return (("model.", ""),) if architecture.is_composite else ()


def _matching(_: Architecture) -> Matching:
    return Matching(
        fused=_FUSED,
        suffix=True,
        class_contains=True,
        must_target=True,
        head_by_name=True,
        order=(By.NAME, By.CLASS, By.SHARDS),
    )


_SPELLINGS: Final = Spellings(  # `load_weights` of the model classes
    decoder=("model.language_model.", "language_model."),
    media=("model.", ""),
    head=("", "model."),
    text=("model.", "model.language_model."),
    drafter=("model.", "model.language_model."),
    habits=("sglang-towers", "sglang-audio", "sglang-drafter", "tower-linear", "moe-experts"),
)

_BFLOAT16: Final = Remedy('`--dtype bfloat16`, or `"dtype": "bfloat16"` in config.json')
_POOLED: Final = Reason(
    "pictures are scaled in float16, in which large values overflow: serve it with `--dtype bfloat16`",
    source="models/gemma4_vision.py:541",
)


def _caveats(architecture: Architecture) -> Iterator[Remark]:
    """Yield a remark on a vision tower in float16: vLLM and transformers scale pooled values in float32."""
    if architecture.dtype is DType.F16 and isinstance(architecture.vision, VisionTower):
        yield Remark(Topic.DTYPE, "vision_tower", _POOLED, (_BFLOAT16,), Role.VISION_TOWER, "--dtype bfloat16")


CONTRACT: Final = Contract(
    engine="sglang",
    title="SGLang",
    versions="0.5.23",
    rules=_rules,
    names=_names,
    paths=_paths,
    matching=_matching,
    drops=("everything that fits no parameter",),
    spellings=_SPELLINGS,
    on_unknown=OnUnknown.DROPS,
    on_missing=OnMissing.LOGS,
    blind=(
        "packed tensors of a module that it builds plain, and plain ones of a module that it builds packed",
        "a lost tensor, but for a line in the log",
    ),
    needs=sglang_needs,
    caveats=_caveats,
)
"""SGLang 0.5.23."""
