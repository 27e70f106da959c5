"""Defaults of transformers' configuration classes: what a config key that is left out means.

Only keys whose value changes answers, and whose value is checked nowhere else: `Architecture` has the sizes. Training's
keys (`attention_dropout`, `initializer_range`) and `use_cache` change none. vLLM 0.33 reads two keys that the classes
do not have (`model_executor/models/gemma4.py`), and transformers' masks read `is_causal` of any config
(`masking_utils.py:901`).
"""

from collections.abc import Mapping
from typing import Any, Final

_NO_LIMITS: Final = (None,)
_EPS: Final = (1e-6,)
_FULL: Final = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}
_SLIDING: Final = {"rope_type": "default", "rope_theta": 10_000.0}
_AXIAL: Final = {"rope_type": "axial", "rope_theta": 100.0}
_IMAGE_TOKENS: Final = {
    "boi_token_id": (255_999,), "eoi_token_id": (258_882,), "image_token_id": (258_880,), "video_token_id": (258_884,),
    "boa_token_id": (256_000,), "eoa_token_index": (258_883,), "audio_token_id": (258_881,),
}  # fmt: skip
_TEXT: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_bias": (False,),
    "attention_k_eq_v": (False,),
    "attn_logit_softcapping": _NO_LIMITS,
    "bos_token_id": (2,),
    "eos_token_id": (1, [1]),
    "final_logit_softcapping": _NO_LIMITS,
    "hidden_activation": ("gelu_pytorch_tanh",),
    "is_causal": (True,),
    "max_position_embeddings": (131_072,),
    "pad_token_id": (0,),
    "rms_norm_eps": _EPS,
    "rope_parameters": ({"full_attention": _FULL, "sliding_attention": _SLIDING}, None),
    "sliding_window": (512,),
    "use_bidirectional_attention": (None,),
    "use_second_mlp_block": (False, None),
}
DEFAULTS: Final[Mapping[str, Mapping[str, tuple[object, ...]]]] = {
    "gemma4_text": _TEXT,
    "gemma4_unified_text": {
        **_TEXT,
        "max_position_embeddings": (262_144,),
        "sliding_window": (1024,),
        "use_bidirectional_attention": ("vision",),
    },
    "gemma4": {"is_causal": (True,), **_IMAGE_TOKENS},
    "gemma4_unified": {"is_causal": (True,), **_IMAGE_TOKENS},
    "gemma4_assistant": {"centroid_intermediate_top_k": (32,)},
    "gemma4_unified_assistant": {"centroid_intermediate_top_k": (32,)},
    "gemma4_vision": {
        "attention_bias": (False, None),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "max_position_embeddings": (131_072,),
        "pooling_kernel_size": (3,),
        "rms_norm_eps": _EPS,
        "rope_parameters": (_AXIAL, {**_AXIAL, "rope_type": "default"}, None),
    },
    "gemma4_audio": {
        "attention_chunk_size": (12,),
        "attention_context_left": (13,),
        "attention_context_right": (0,),
        "attention_invalid_logits_value": (-1.0e9,),
        "attention_logit_cap": (50.0,),
        "gradient_clipping": (1e10,),
        "hidden_act": ("silu",),
        "residual_weight": (0.5,),
        "rms_norm_eps": _EPS,
    },
    "gemma4_unified_vision": {"rms_norm_eps": _EPS},
    "gemma4_unified_audio": {"rms_norm_eps": _EPS},
}
"""Model type of a section -> key -> values that mean what leaving the key out means."""
_WITHOUT_EFFECT: Final = {
    "attention_dropout", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
}  # fmt: skip
_ROTATION: Final[Mapping[str, tuple[object, ...]]] = {
    "factor": (1.0, 1, None), "partial_rotary_factor": (1.0, 1, None), "attention_factor": (1.0, 1, None),
}  # fmt: skip


def changes_answers(config: Mapping[str, Any], path: str, key: str, value: object) -> bool:
    """Return whether a key that the source leaves out makes another model of an output.

    Args:
        config: the output's config.
        path: path of the section that has the key, with a dot at its end; empty for the top level.
        key: the key.
        value: its value.
    """
    if ".rope_parameters." in f".{path}":
        return value not in _ROTATION.get(key, (None,))
    if key == "eos_token_id" and isinstance(text := config.get("text_config"), Mapping) and not path:
        return value not in (None, text.get("eos_token_id"))
    known = DEFAULTS.get(_type_of_section(config, path), {})
    if key in known:
        return not any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in known[key])
    is_of_attention = key.startswith(("attention_", "attn_", "rope_")) and key not in _WITHOUT_EFFECT
    return is_of_attention and value is not None


def _type_of_section(config: Mapping[str, Any], path: str) -> str:
    """Return the model type of a section, from its place: it may lack the key."""
    whole = str(config.get("model_type"))
    if not path:
        return whole
    kind = path.removesuffix("_config.")
    return f"gemma4_unified_{kind}" if "unified" in whole else f"gemma4_{kind}"
