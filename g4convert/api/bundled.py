"""Counts the token ids that the bundled texts make for a model: by its own tokenizer, without transformers.

The released vocabulary has one count, so its tokenizer, which takes seconds to read, is not read. Chat frames, which
`calibrate` adds, and ends of texts, which it cuts off, are not counted: the result is about right.
"""

from functools import cache
from typing import Final

from g4convert.calibration.documents import bundled
from g4convert.checkpoint.directory import Checkpoint
from g4convert.planning.costs import BUNDLED_TOKENS

_RELEASED: Final = 262_144
"""Entries of the released vocabulary."""
MOST_ROWS: Final = 128
"""Most rows that `calibrate` makes unless told, as `calibration.sampling` has it, which imports transformers."""
_LONGEST: Final = 2048
"""Most tokens of a row that `calibrate` makes unless told."""


def row_length(sliding_window: int) -> int:
    """Return the tokens of a row that `calibrate` makes unless told."""
    return min(2 * sliding_window, _LONGEST)


def bundled_tokens(checkpoint: Checkpoint) -> int:
    """Return about how many token ids the bundled texts make for a model, whose config is a valid one.

    Args:
        checkpoint: the model; without a tokenizer that can be read, the count is that of the released vocabulary.
    """
    text, file = checkpoint.config.get("text_config", checkpoint.config), checkpoint.path / "tokenizer.json"
    if text["vocab_size"] == _RELEASED or not file.is_file():
        return BUNDLED_TOKENS
    try:
        count = _counted(file.read_bytes())
    except Exception:  # noqa: BLE001 -- tokenizers raises plain ones; what reads the file in earnest says what is wrong
        return BUNDLED_TOKENS
    length = row_length(text["sliding_window"])
    return min(count // length, MOST_ROWS) * length


@cache
def _counted(tokenizer: bytes) -> int:
    """Return how many token ids a tokenizer.json makes of the bundled texts."""
    from tokenizers import Tokenizer  # noqa: PLC0415 -- what most plans do without

    encoded = Tokenizer.from_buffer(tokenizer).encode_batch(
        [document.text for document in bundled()], add_special_tokens=False
    )
    return sum(len(one.ids) for one in encoded)
