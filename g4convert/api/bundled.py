"""Counts the token ids that the bundled texts make for a model: by its own tokenizer, without transformers.

The released vocabulary has one count, so its tokenizer, which takes seconds to read, is not read. Chat frames, which
`calibrate` adds, and ends of texts, which it cuts off, are not counted: the result is about right.
"""

from functools import cache
from typing import Final

from g4convert.checkpoint.beside import PROCESSORS
from g4convert.checkpoint.directory import Checkpoint
from g4convert.planning.costs import BUNDLED_PICTURES, BUNDLED_TOKENS, ENDS, LONGEST_ROW, MOST_ROWS

_RELEASED_VOCABULARY: Final = 262_144
"""Entries of the released vocabulary."""
_SOFT_TOKENS: Final = 280
"""Most soft tokens of a picture in released models."""


def default_row_length(sliding_window: int) -> int:
    """Return the default number of tokens in a row of `calibrate`."""
    return min(2 * sliding_window, LONGEST_ROW)


def count_bundled_tokens(checkpoint: Checkpoint) -> int:
    """Return about how many token ids the bundled texts make for a model, whose config is a valid one.

    Args:
        checkpoint: the model; without a tokenizer that can be read, the count is that of the released vocabulary.
    """
    text, file = checkpoint.config.get("text_config", checkpoint.config), checkpoint.path / "tokenizer.json"
    length = default_row_length(text["sliding_window"])
    pictures = BUNDLED_PICTURES if _has_pictures(checkpoint, length) else 0
    if text["vocab_size"] == _RELEASED_VOCABULARY or not file.is_file():
        return BUNDLED_TOKENS + pictures
    try:
        count = _count_tokens(file.read_bytes()) + pictures
    except Exception:  # noqa: BLE001 -- tokenizers raises plain ones; what reads the file in earnest says what is wrong
        return BUNDLED_TOKENS + pictures
    return min(count // length, MOST_ROWS) * length


def _has_pictures(checkpoint: Checkpoint, length: int) -> bool:
    """Return whether the bundled texts have pictures for a model: it takes them, and a row holds one."""
    config = checkpoint.config
    vision = config.get("vision_config") or {}
    soft = vision.get("default_output_length", vision.get("num_soft_tokens", _SOFT_TOKENS))
    return bool(vision) and any((checkpoint.path / name).is_file() for name in PROCESSORS) and length > soft + ENDS


@cache
def _count_tokens(tokenizer: bytes) -> int:
    """Return how many token ids a tokenizer.json makes of the bundled texts."""
    from tokenizers import Tokenizer  # noqa: PLC0415 -- here and below: what most plans do without

    from g4convert.calibration.documents import bundled_documents  # noqa: PLC0415

    encoded = Tokenizer.from_buffer(tokenizer).encode_batch(
        [document.text for document in bundled_documents()], add_special_tokens=False
    )
    return sum(len(text.ids) for text in encoded)
