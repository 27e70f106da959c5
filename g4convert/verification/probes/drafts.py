"""The probe of an MTP assistant: states, keys and values as a target hands them over."""

from typing import Any

import torch

from g4convert.forward.models import Model
from g4convert.forward.probe import Probe

__all__ = ["draft_probe"]


def draft_probe(model: Model, *, seed: int = 0) -> Probe:
    """Return a probe of eight drafts; their right tokens are not known, so the probe's targets are random."""
    arguments = _arguments(model, torch.Generator().manual_seed(seed))
    rows, length = arguments["inputs_embeds"].shape[:2]
    vocab_size = model.config.get_text_config().vocab_size
    targets = torch.randint(vocab_size, (rows * length,), generator=torch.Generator().manual_seed(seed))
    return Probe("draft", "draft", arguments, torch.ones(rows, length, dtype=torch.bool), targets)


def _arguments(model: Model, generator: torch.Generator) -> dict[str, Any]:
    """Return the arguments of eight drafts of one token each: the target's embedding and state, keys and values.

    They are random, with the shapes that a target with the drafter's head sizes hands over.
    """
    config = model.config.get_text_config()
    context = 24
    states = {}
    for layer, kind in zip(model.model.layers, config.layer_types, strict=True):
        attention = layer.self_attn
        heads = config.num_attention_heads // attention.num_key_value_groups
        shape = (8, heads, context, attention.head_dim)
        keys = torch.randn(shape, generator=generator) * attention.head_dim**-0.5
        states[kind] = (keys.to(model.dtype), torch.randn(shape, generator=generator).to(model.dtype))
    embeddings = torch.randn(8, 1, 2 * model.config.backbone_hidden_size, generator=generator)
    return {
        "inputs_embeds": embeddings.to(model.dtype),
        "position_ids": torch.full((8, 1), context),
        "shared_kv_states": states,
    }
