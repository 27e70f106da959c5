"""Logits of a model in a file, by what it was asked: for an engine whose process would take seconds to load one."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch


def question(ids: Sequence[int], media: Sequence[tuple[str, Mapping[str, torch.Tensor]]]) -> str:
    """Name of a prompt's answer: a hash of its token ids, and of its pictures and sounds as a forward takes them."""
    found = sha256(repr([*ids]).encode())
    for kind, tensors in media:
        for name, tensor in sorted(tensors.items()):
            found.update(f"{kind} {name} {tensor.dtype} {[*tensor.shape]}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()
