"""Checks of config keys that decide no tensor, but without which no engine reads the config.

transformers' configuration classes, which vLLM and SGLang use too, refuse a value of another type (`"1e-06"` for a
number, as YAML tools write it, or null for a whole number). A key that is missing has a default.
"""

from collections.abc import Mapping, Sequence

from g4convert.gemma4.config_reader import ConfigReader

__all__ = ["check_other_keys"]

_TABLE: Mapping[str, Mapping[str, Sequence[str]]] = {
    "decoder": {
        "size": ("max_position_embeddings", "sliding_window"),
        "number": ("rms_norm_eps", "initializer_range"),
        "number or null": ("final_logit_softcapping", "attention_dropout"),
        "text": ("hidden_activation",),
        "flag": ("use_cache", "tie_word_embeddings"),
    },
    "vision": {
        "size": ("pooling_kernel_size", "max_position_embeddings"),
        "number": ("rms_norm_eps", "initializer_range"),
        "text": ("hidden_activation",),
    },
    "audio": {
        "size": ("attention_chunk_size", "attention_context_left"),
        "number": (
            "attention_invalid_logits_value",
            "attention_logit_cap",
            "gradient_clipping",
            "initializer_range",
            "residual_weight",
            "rms_norm_eps",
        ),
        "text": ("hidden_act",),
    },
    "unified": {"number": ("rms_norm_eps", "initializer_range")},
}
"""Part -> kind of value -> keys."""


def check_other_keys(read: ConfigReader, part: str) -> None:
    """Note the keys of a section whose values are of another type.

    Args:
        read: reader of the section.
        part: `decoder`, `vision`, `audio`, or `unified` for the embedders of a unified model.
    """
    for kind, keys in _TABLE[part].items():
        for key in keys:
            if key in read.values:
                _check(read, kind, key)


def _check(read: ConfigReader, kind: str, key: str) -> None:
    value = read.values[key]
    match kind:
        case "size":
            read.integer(key)
        case "flag":
            read.flag(key, default=False)
        case "text":
            if not isinstance(value, str):
                read.note(key, f"{_shown(value)}, expected a string")
        case _:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124 -- NaN
            if not fits and (value is not None or kind == "number"):
                read.note(key, f"{_shown(value)}, expected a number")


def _shown(value: object) -> str:
    return "null" if value is None else f"{value!r:.40}"
