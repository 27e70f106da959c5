r"""Contract of transformers 5.17 to 5.24, which matches entries with compressed-tensors (0.17 to 0.20).

names       as in the checkpoint; in a unified model the embedder's parts lie below `embed_vision`
            (transformers `conversion_mapping.py`, entry `gemma4_unified`). Entries are not renamed
fused       no modules
matching    compressed_tensors `utils/match.py`, `match_named_modules`: equality, `re.match`, or the name of a
            class or a base class, in `targets` and in `ignore`; then `quantization/lifecycle/apply.py` selects
            Linears and embeddings
group       `utils/match.py`, `match_targets`: names before classes, whole names before patterns, then the alphabet
experts     3-D parameters, not modules. Experts that are stored one by one match entries as Linears do, but are not
            loaded, as no entry of `conversion_mapping.py` merges them: the model's experts stay random
releases    from 5.23 on refuses zero points (`weight_zero_point` has another shape) unless it dequantizes while it
            loads, and 0-dimensional scales of activations; before 5.24 a `kv_cache_scheme` raises where layers
            differ in their heads; 5.23 builds no assistants; from 5.23 on also reads a decoder
            below `model.language_model.model.`, which is not relied on
kv shared   layers that share keys and values have no k_proj and no v_proj
"""

from dataclasses import replace
from typing import Final

from g4convert.engines.contract import Contract, OnMissing, OnUnknown
from g4convert.engines.matching import Matching
from g4convert.engines.module import Accepts, ModuleRule, Renames
from g4convert.engines.reason import Reason
from g4convert.engines.spellings import Spellings
from g4convert.gemma4 import Architecture

_LINEAR: Final = ("Linear", "Module")
_TABLE: Final = ("Gemma4TextScaledWordEmbedding", "Embedding", "Module")
_UNIFIED_TABLE: Final = ("Gemma4UnifiedTextScaledWordEmbedding", *_TABLE[1:])
_UNIFIED: Final[Renames] = (
    ("model.vision_embedder.", "model.embed_vision."),
    ("model.embed_vision.embedding_projection.", "model.embed_vision.multimodal_embedder.embedding_projection."),
)

_RULES: Final = (
    ModuleRule(r"(.*\blayers\.\d+\.self_attn)\.[kv]_proj", (), None, kv_shared=True),
    ModuleRule(
        r"(.*\blayers\.\d+\.experts)\.\d+\.(gate|up|down)_proj",
        _LINEAR,
        r"\1",
        accepts=Accepts.PLAIN,
        note=Reason("get random weights, without an error, as it looks for one tensor for all experts of a layer"),
    ),
    ModuleRule(
        r".*\bembed_tokens(_per_layer)?",
        _TABLE,
        accepts=Accepts.PLAIN,
        note=Reason("a packed table has no `weight`, which is asked for while it is loaded: AttributeError"),
    ),
    ModuleRule(
        r".*\bpatch_embedder\.input_proj",
        _LINEAR,
        accepts=Accepts.PLAIN,
        note=Reason("the forward pass reads the dtype of its `weight`"),
    ),
    ModuleRule(
        r"model\.embed_vision\.(patch_dense|multimodal_embedder\.embedding_projection)",
        _LINEAR,
        accepts=Accepts.PLAIN,
        note=Reason("the forward pass of a unified model reads the dtype of its `weight`"),
    ),
    ModuleRule(r".*", _LINEAR),
)


_TIED_HEAD: Final = ModuleRule(r"lm_head", _LINEAR, accepts=Accepts.PLAIN, note=Reason("tied with the embedding"))
"""An untied head is a Linear as the others."""


def _rules(architecture: Architecture) -> tuple[ModuleRule, ...]:
    rules = (_TIED_HEAD, *_RULES) if architecture.tied_embeddings else _RULES
    if not architecture.is_unified:
        return rules
    return tuple(replace(rule, classes=_UNIFIED_TABLE) if rule.classes == _TABLE else rule for rule in rules)


def _names(architecture: Architecture) -> Renames:
    return _UNIFIED if architecture.is_unified else ()


def _paths(_: Architecture) -> Renames:
    return ()


def _matching(_: Architecture) -> Matching:
    return Matching(class_in_ignore=True, by_alphabet=True)


_SPELLINGS: Final = Spellings(  # one `model.` less or more: `base_model_prefix`
    decoder=("model.language_model.", "language_model.", "model.model.language_model."),
    media=("model.", "", "model.model."),
    head=("", "model."),
    text=("model.", "", "model.model."),
    text_head=("", "model."),
    drafter=("model.", "", "model.model."),
    unified=("unified-modules",),  # names of its own modules, which no entry of `conversion_mapping.py` changes
)

CONTRACT: Final = Contract(
    engine="transformers",
    title="transformers",
    versions="5.17 to 5.24",
    rules=_rules,
    names=_names,
    paths=_paths,
    matching=_matching,
    drops=(),
    spellings=_SPELLINGS,
    on_unknown=OnUnknown.WARNS,
    on_missing=OnMissing.RANDOM,
    blind=("experts that are stored one by one: the report of unexpected and missing names is a warning",),
    stacks_experts=True,
)
"""transformers 5.17 to 5.24."""
