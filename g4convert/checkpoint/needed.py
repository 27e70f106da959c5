"""Files that engines need beside the weights: a tokenizer, a processor of media, and to chat a template.

tokenizer.json, or tokenizer.model                    without one, transformers makes no tokenizer, or, from
                                                      tokenizer_config.json alone, one without a vocabulary
processor_config.json, or preprocessor_config.json    how pictures and sound become tensors
chat_template.jinja, chat_template.json (older), or   a base model has none
`chat_template` in tokenizer_config.json
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from g4convert.checkpoint.beside import PROCESSORS

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model")
_TEMPLATES: Final = (CHAT_TEMPLATE, "chat_template.json")
_NEEDED: Final = (*_TOKENIZERS, *PROCESSORS, *_TEMPLATES, TOKENIZER_CONFIG)
_LARGEST_TOKENIZER: Final = 64 << 20
"""Bytes of tokenizer_config.json that are read; with all added tokens it has 1.2 MB."""


def present(directory: Path) -> frozenset[str]:
    """Return the names of such files that a directory has."""
    return frozenset(name for name in _NEEDED if (directory / name).is_file())


def has_tokenizer(names: Collection[str]) -> bool:
    """Return whether files have a tokenizer's vocabulary among them."""
    return any(name in names for name in _TOKENIZERS)


def has_processor(names: Collection[str]) -> bool:
    """Return whether files have the settings of a processor among them."""
    return any(name in names for name in PROCESSORS)


def has_chat_template(directory: Path, names: Collection[str]) -> bool:
    """Return whether files have a chat template among them, or in the config of their tokenizer.

    Args:
        directory: the checkpoint's directory.
        names: files of the directory.
    """
    if any(name in names for name in _TEMPLATES):
        return True
    if TOKENIZER_CONFIG not in names:
        return False
    try:
        with (directory / TOKENIZER_CONFIG).open("rb") as file:
            said = json.loads(file.read(_LARGEST_TOKENIZER))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and bool(said.get("chat_template"))
