"""Bytes on disk of the hidden states between layers while a model is run layer by layer.

Letters: t tokens, h hidden size.
"""

from g4convert.gemma4 import TextModel

_FLOAT32 = 4
TARGET_IDS = 320
"""Most ids whose next-token probabilities of the original are kept, per token."""


def state_bytes(text: TextModel, tokens: int, *, layered: bool) -> int:
    """Return the largest size of the state files in bytes; a test compares it with the files.

    Args:
        text: the decoder.
        tokens: number of token ids that are run.
        layered: True if layers are quantized one by one, False if they run once for statistics.
    """
    widths = [2 * text.hidden_size]  # what a layer is given, and what it gives
    if text.ple:
        widths.append(len(text.layers) * text.ple.width)
    sharing = {layer.full: layer for layer in text.layers if layer.kv_shared}
    widths += [2 * layer.kv_heads * layer.head_dim for layer in sharing.values()]
    if layered:
        inner = max(text.heads * layer.head_dim for layer in text.layers)
        inner += max(layer.intermediate_size for layer in text.layers)
        widths.append(inner)
        if not text.experts:  # those of the unquantized layers besides, and what their Linears are given
            shared = sum(2 * layer.kv_heads * layer.head_dim for layer in sharing.values())
            widths += [2 * text.hidden_size + shared, 2 * text.hidden_size + inner]
    if text.experts:
        widths += [text.hidden_size] if layered else [2 * text.hidden_size, 2 * text.experts.top_k]
    return _FLOAT32 * tokens * sum(widths)


def target_bytes(text: TextModel, tokens: int) -> int:
    """Return the size in bytes of the files with the original's output for each token, used to train scales."""
    return _FLOAT32 * tokens * (text.hidden_size + 2 * min(TARGET_IDS, text.vocab_size))
