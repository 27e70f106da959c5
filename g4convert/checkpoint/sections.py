"""The place of the quantization section in a config.json.

The section is looked for where engines look, in their order:

    quantization_config                all
    text_config.quantization_config    transformers and vLLM; SGLang finds no method there, and builds everything plain
    compression_config                 vLLM and SGLang
    text_config.compression_config     none: vLLM finds the method there but no scheme, and stops

(transformers 5.22 `quantizers/auto.py:350`; vLLM 0.33 `transformers_utils/model_arch_config_convertor.py:241` and
`model_loader/weight_utils.py:239`; SGLang 0.5.23 `configs/model_config.py:1727` and
`model_loader/checkpoint_quantization.py:53`.)
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from g4convert.checkpoint.files import part

SECTIONS: Final = frozenset({"quantization_config", "compression_config", "quantization"})
"""Keys of a config that describe a quantization, at any level; `quantization` is MLX's."""

_PLACES: Final = (
    "quantization_config",
    "text_config.quantization_config",
    "compression_config",
    "text_config.compression_config",
)


def section_of(config: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the path (`text_config.quantization_config`) and value of the section; empty and None if there is none."""
    return next(sections_of(config), ("", None))


def section_in(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section if it is an object, wherever the config has it; else an empty one."""
    _, section = section_of(config)
    return section if isinstance(section, Mapping) else {}


def sections_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every quantization section, in the order in which engines look."""
    for place in _PLACES:
        below, _, key = place.rpartition(".")
        holder = part(config, below) if below else config
        if holder.get(key) is not None:
            yield place, holder[key]
