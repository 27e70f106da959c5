"""Checks of config keys that decide no tensor, but without which no engine reads the config.

transformers' configuration classes, which vLLM and SGLang use too, refuse a value of another type (`"1e-06"` for a
number, as YAML tools write it, `30` for `30.0`, as JavaScript does, or null for a whole number), a dtype that torch
does not have and an activation that transformers does not have. A key that is missing has a default.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeGuard

from g4convert.gemma4.config_reader import ConfigReader
from g4convert.tensors import DType

_TOKENS = ("boi_token_id", "eoi_token_id", "image_token_id", "video_token_id", "boa_token_id", "eoa_token_index",
           "audio_token_id")  # fmt: skip
_DECODER: Mapping[str, Sequence[str]] = {
    "size": ("max_position_embeddings", "sliding_window"),
    "number": ("rms_norm_eps", "initializer_range"),
    "number or null": ("final_logit_softcapping",),
    "any number or null": ("attention_dropout",),
    "activation": ("hidden_activation",),
    "flag": ("use_cache", "tie_word_embeddings"),
    "whole or null": ("pad_token_id", "bos_token_id"),
    "tokens": ("eos_token_id",),
    "attention": ("use_bidirectional_attention",),
}
_TABLE: Mapping[str, Mapping[str, Sequence[str]]] = {
    "whole model": {"whole or null": _TOKENS, "number or null": ("initializer_range",)},
    "drafter": {"whole": ("centroid_intermediate_top_k",)},
    "decoder": {
        **_DECODER,
        "whole": ("vocab_size_per_layer_input",),
        "whole or null": (*_DECODER["whole or null"], "num_experts", "top_k_experts", "moe_intermediate_size"),
    },
    "unified decoder": _DECODER,
    "vision": {
        "size": ("pooling_kernel_size", "max_position_embeddings"),
        "number": ("rms_norm_eps", "initializer_range"),
        "number or null": ("attention_dropout",),
        "activation": ("hidden_activation",),
        "flag or null": ("attention_bias",),
        "object or null": ("rope_parameters",),
    },
    "audio": {
        "size": ("attention_chunk_size", "attention_context_left"),
        "whole": ("attention_context_right",),
        "number": (
            "attention_invalid_logits_value",
            "attention_logit_cap",
            "gradient_clipping",
            "residual_weight",
            "rms_norm_eps",
        ),
        "share": ("initializer_range",),
        "activation": ("hidden_act",),
    },
    "unified": {"number": ("rms_norm_eps", "initializer_range")},
}
"""Part -> kind of value -> keys."""

_ACTIVATIONS: Final = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid",
    "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
)  # fmt: skip
"""Keys of transformers' `ACT2FN`; Gemma 4's decoder and vision tower have `gelu_pytorch_tanh`, its audio `silu`."""
_DTYPES: Mapping[str, DType | None] = {
    "bfloat16": DType.BF16, "float16": DType.F16, "half": DType.F16, "float32": DType.F32, "float": DType.F32,
    "float64": None, "double": None,
}  # fmt: skip
_SPELLED: Mapping[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def check_other_keys(read: ConfigReader, part: str) -> None:
    """Note the keys of a section whose values no engine reads.

    Args:
        read: reader of the section.
        part: `whole model` for the top level of a multimodal model, `drafter` for that of a drafter, `decoder`,
            `unified decoder`, `vision`, `audio`, or `unified` for the embedders of a unified model.
    """
    read_dtype(read)
    for kind, keys in _TABLE[part].items():
        for key in keys:
            if key in read.values:
                _check(read, kind, key)


def read_dtype(read: ConfigReader) -> DType | None:
    """Return the dtype that a section gives, or None; note a name that torch does not have.

    transformers looks the name up in torch, so `torch.bfloat16` and `bf16` end its loading.
    """
    key = next((key for key in ("dtype", "torch_dtype") if read.values.get(key) is not None), "dtype")
    name = read.text(key)
    if name is not None and name not in _DTYPES:
        plain = name.removeprefix("torch.")
        meant = _SPELLED.get(plain, plain)
        read.note(key, f"{name!r:.40}, expected {meant if meant in _DTYPES else 'bfloat16, float16 or float32'}")
    return _DTYPES.get(name or "")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) and value == value  # noqa: PLR0124 -- NaN


def _are_tokens(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


_FITS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "whole": (_is_whole, "a whole number"),
    "number": (_is_number, "a number with a decimal point"),
    "share": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0.0 to 1.0"),
    "any number": (lambda value: _is_whole(value) or _is_number(value), "a number"),
    "text": (lambda value: isinstance(value, str), "a string"),
    "tokens": (lambda value: value is None or _are_tokens(value), "a whole number, a list of them, or null"),
    "attention": (lambda value: value in (None, "all", "vision"), "all, vision or null"),
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "object": (lambda value: isinstance(value, Mapping), "an object"),
}
"""Kind of value -> test, and the words of its error."""


def _check(read: ConfigReader, kind: str, key: str) -> None:
    value = read.values[key]
    if kind == "size":
        read.integer(key)
    elif kind == "activation":
        if not isinstance(value, str):
            read.note(key, f"{_shown(value)}, expected a string")
        elif value not in _ACTIVATIONS:
            usual = "silu" if key == "hidden_act" else "gelu_pytorch_tanh"
            read.note(key, f"{value!r:.40}, expected {usual!r}: transformers has no such activation")
    else:
        kind, _, nullable = kind.partition(" or ")
        fits, expected = _FITS[kind]
        if not fits(value) and not (nullable and value is None):
            read.note(key, f"{_shown(value)}, expected {expected}{' or null' if nullable else ''}")


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!r:.40}"
