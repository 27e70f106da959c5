"""Bytes on disk of what flows between layers while a model is run layer by layer.

Letters: t tokens, h hidden size.
"""

from g4convert.gemma4 import TextModel

__all__ = ["TARGET_IDS", "state_bytes", "target_bytes"]

_FLOAT32 = 4
TARGET_IDS = 320
"""Ids of a token that are kept of what the original says."""


def state_bytes(text: TextModel, tokens: int, *, layered: bool) -> int:
    """Largest size of the files of states; a test holds it against the files.

    Args:
        text: the decoder.
        tokens: token ids that are run.
        layered: the layers are quantized one after the other, not run once for statistics.
    """
    widths = [2 * text.hidden_size]  # what a layer is given, and what it gives
    if text.ple:
        widths.append(len(text.layers) * text.ple.width)
    sharing = {layer.full: layer for layer in text.layers if layer.kv_shared}
    widths += [2 * layer.kv_heads * layer.head_dim for layer in sharing.values()]
    if layered:
        widths.append(max(text.heads * layer.head_dim for layer in text.layers))
        widths.append(max(layer.intermediate_size for layer in text.layers))
    if text.experts:
        widths += [text.hidden_size] if layered else [2 * text.hidden_size, 2 * text.experts.top_k]
    return _FLOAT32 * tokens * sum(widths)


def target_bytes(text: TextModel, tokens: int) -> int:
    """Size of the files of what the original says of each token, for the training of scales."""
    return _FLOAT32 * tokens * (text.hidden_size + 2 * min(TARGET_IDS, text.vocab_size))
