"""Comparison of an MTP drafter with the model that it drafts for, the target.

A drafter reads the target's last hidden state and token embedding through `pre_projection` [h, 2 * backbone], writes
the next hidden state through `post_projection` [backbone, h], and attends to keys and values of the target: each layer
to the target's last layer of the same kind that has keys and values of its own (transformers 5.22
`Gemma4TextAttention`, vLLM 0.33 `v1/spec_decode/gemma4.py:302`). So both need the same number and width of heads in
each kind of layer, and the same tokens. A wrong drafter cannot spoil answers, as the target checks every token; it
stops the server, or its drafts are rejected.

Letters: h hidden_size of the drafter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.files import part
from g4convert.errors import UsageError
from g4convert.gemma4 import Architecture, Layer
from g4convert.report import Finding, Severity

_TOKENIZER: Final = "tokenizer.json"
_SAME_CONFIG: Final = ("rope_parameters", "sliding_window")
_REMEDY: Final = "take the drafter that was made for this model"


def paired(drafter: Checkpoint, target: Checkpoint) -> Iterator[Finding]:
    """Yield the differences that keep a drafter from drafting for a model, or one finding that it fits.

    Raises:
        UsageError: the drafter is no MTP assistant, or the target is one.
        InputError: a config that describes no Gemma 4.
    """
    small, large = Architecture.from_config(drafter.config), Architecture.from_config(target.config)
    if not small.is_assistant or large.is_assistant:
        odd, what = (drafter, "no MTP assistant") if not small.is_assistant else (target, "an MTP assistant itself")
        hint = "g4convert check OUT --assistant-of MODEL, where OUT is the drafter"
        raise UsageError(f"{odd.path}: is {what}", hint=hint)
    problems = [
        *_sizes(small, large),
        *_attention(small, large),
        *_config(drafter, target),
        *_vocabulary(drafter, target),
    ]
    yield from problems
    if not any(one.severity is Severity.FAIL for one in problems):
        text = "sizes, heads of each kind of layer and vocabulary are the target's"
        yield Finding("assistant.pair", Severity.PASS, large.family, text, "")


def _sizes(drafter: Architecture, target: Architecture) -> Iterator[Finding]:
    backbone = drafter.drafter.backbone_hidden_size if drafter.drafter else 0
    centroids = drafter.drafter.centroids if drafter.drafter else None
    pairs = {
        "backbone_hidden_size": (backbone, target.text.hidden_size),
        "vocab_size": (drafter.text.vocab_size, target.text.vocab_size),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            yield _wrong(name, str(found), f"{wanted}, as the target")
    if centroids and drafter.text.vocab_size % centroids:
        text = f"{drafter.text.vocab_size} tokens in {centroids} clusters"
        yield _wrong("num_centroids", text, "clusters of one size: engines refuse others")
    if drafter.is_unified != target.is_unified:
        line = {True: "Gemma 4 unified", False: "Gemma 4"}
        yield _wrong("model_type", line[drafter.is_unified], f"{line[target.is_unified]}, as the target")


def _attention(drafter: Architecture, target: Architecture) -> Iterator[Finding]:
    """Yield the kinds of layer for which the target has no keys and values of the drafter's shape."""
    own = {layer.full: layer for layer in target.text.layers if not layer.kv_shared}
    for full in dict.fromkeys(layer.full for layer in drafter.text.layers):
        kind = "full_attention" if full else "sliding_attention"
        layer = next(layer for layer in drafter.text.layers if layer.full is full)
        if full not in own:
            yield _wrong(kind, "no such layer with keys of its own in the target", "one whose keys it can read")
        elif (found := _heads(layer)) != (wanted := _heads(own[full])):
            yield _wrong(kind, found, f"{wanted}, as the target's last such layer")
        elif drafter.text.heads % layer.kv_heads:
            yield _wrong(kind, f"{drafter.text.heads} heads", f"a multiple of {layer.kv_heads}")


def _heads(layer: Layer) -> str:
    return f"{layer.kv_heads} key heads of {layer.head_dim}"


def _config(drafter: Checkpoint, target: Checkpoint) -> Iterator[Finding]:
    """Yield differences in rotary parameters and sliding window, which change the meaning of keys."""
    small, large = (part(one.config, "text_config") or one.config for one in (drafter, target))
    for key in _SAME_CONFIG:
        if key in small and key in large and small[key] != large[key]:
            found, wanted = f"{small[key]!r:.80}", f"{large[key]!r:.80}, as the target"
            yield Finding("assistant.config", Severity.WARN, key, found, wanted, "drafts will be bad; " + _REMEDY)


def _vocabulary(drafter: Checkpoint, target: Checkpoint) -> Iterator[Finding]:
    """Yield a finding if both have a tokenizer and their vocabularies differ; engines read the target's alone."""
    files = [one.path / _TOKENIZER for one in (drafter, target)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    small, large = map(_tokens, files)
    if small is not None and large is not None and small != large:
        found, wanted = "other tokens than the target's", "the same vocabulary"
        yield Finding("assistant.config", Severity.WARN, _TOKENIZER, found, wanted, "drafts will be bad; " + _REMEDY)


def _tokens(file: Path) -> object:
    """Return the vocabulary of a tokenizer file; None if the file has none."""
    try:
        return json.loads(file.read_bytes())["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        return None


def _wrong(subject: str, found: str, expected: str) -> Finding:
    return Finding("assistant.pair", Severity.FAIL, subject, found, expected, _REMEDY)
