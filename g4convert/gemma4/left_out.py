"""Keys of a config that transformers does without and a serving engine reads: those that a checkpoint leaves out.

transformers' classes compute their values, or have no such key, so `save_pretrained` may lose them. They decide no
tensor. `engines.needs` says which engine stops without which.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "gemma4": ("vision_config.default_output_length",),
    "gemma4_unified": (
        "text_config.hidden_size_per_layer_input",
        "vision_config.model_patch_size",
        "vision_config.mm_embed_dim",
        "vision_config.mm_posemb_size",
        "vision_config.output_proj_dims",
        "vision_config.num_soft_tokens",
        "audio_config.output_proj_dims",
    ),
}
"""Model type -> keys that some engine reads, as `section.key`."""


def left_out(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys, as `section.key`, that a config lacks, or has as null, in a section that it has."""
    for place in _KEYS.get(str(config["model_type"]), ()):
        section, _, key = place.partition(".")
        values = config.get(section)
        if isinstance(values, Mapping) and values.get(key) is None:
            yield place
