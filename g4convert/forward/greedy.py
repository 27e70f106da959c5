"""Greedy decoding: one token after the other, always the likeliest, with the model's own KV cache.

Only the last token's logits are computed: at 262,144 ids, those of a prompt of 4,096 tokens would take 2 GiB in bf16
and as much again for the softcap. transformers' `generate` gives the same tokens; this loop yields each token at once.
"""

from collections.abc import Iterator, Sequence

import torch

from g4convert.errors import GateError
from g4convert.forward.media import call
from g4convert.forward.models import Model, cache_name

__all__ = ["ends", "greedy"]


def ends(model: Model) -> list[int]:
    """Return the ids that end an answer."""
    for owner in (getattr(model, "generation_config", None), model.config, model.config.get_text_config()):
        found = getattr(owner, "eos_token_id", None)
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def greedy(model: Model, ids: Sequence[int], *, max_new_tokens: int) -> Iterator[int]:
    """Continue a text, and yield each token as soon as it is known.

    Args:
        model: a model with a Gemma 4 forward and a cache, on any device.
        ids: tokens of the text so far, at least one.
        max_new_tokens: most tokens; an id that ends an answer stops earlier, and is yielded, too.

    Yields:
        Ids of the continuation.

    Raises:
        GateError: a logit is not finite.
    """
    last, cache, name = torch.tensor([list(ids)]), None, cache_name(model)
    for _ in range(max_new_tokens):
        arguments = {"input_ids": last, name: cache, "logits_to_keep": 1}
        output = call(model, arguments, use_cache=True)
        cache, logits = output[name], output.logits[0, -1].float().cpu()
        if not bool(logits.isfinite().all()):
            raise GateError("the model's logits are not finite", hint="`g4convert verify` finds out where")
        token = int(logits.argmax())
        yield token
        if token in ends(model):
            return
        last = torch.tensor([[token]])
