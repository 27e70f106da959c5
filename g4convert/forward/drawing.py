"""Answers drawn at temperature 1: what a model itself would say, for calibration.

A batch of questions is padded on the left and continued token by token with the model's own KV cache. Draws come from
one generator on the CPU, so a seed gives the same answers again on the same device with the same batches.
"""

from collections.abc import Sequence

import torch

from g4convert.errors import GateError
from g4convert.forward.conversations import placeholders
from g4convert.forward.greedy import ends
from g4convert.forward.media import call
from g4convert.forward.models import Model, cache_name

__all__ = ["draw"]


def draw(
    model: Model, questions: Sequence[Sequence[int]], *, max_new_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """Draw an answer to each question.

    Args:
        model: a model with a Gemma 4 forward and a cache, on any device.
        questions: ids of each question, at least one.
        max_new_tokens: most tokens of an answer; an id that ends it stops earlier, and is returned, too.
        generator: random generator on the CPU.

    Returns:
        The ids of the answers. Placeholders of pictures and sounds are never drawn.

    Raises:
        GateError: a logit is not finite.
    """
    width = max(map(len, questions))
    padding = torch.tensor([width - len(ids) for ids in questions])[:, None]
    pad = model.config.get_text_config().pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(row)) + [*row] for row in questions])
    place = torch.arange(width)
    mask, position = (place >= padding).long(), (place - padding).clamp(min=0)
    barred, last = torch.tensor(placeholders(model.config), dtype=torch.int64), ends(model)
    answers: list[list[int]] = [[] for _ in questions]
    going, cache, name = [True] * len(questions), None, cache_name(model)
    for _ in range(max_new_tokens):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": position, name: cache}
        output = call(model, {**given, "logits_to_keep": 1}, use_cache=True)
        cache, logits = output[name], output.logits[:, -1].float().cpu()
        if not bool(logits.isfinite().all()):
            raise GateError("the model's logits are not finite", hint="`g4convert verify` finds out where")
        shares = logits.index_fill(-1, barred, -torch.inf).softmax(-1)
        ids = torch.multinomial(shares, 1, generator=generator)
        for row, token in enumerate(ids[:, 0].tolist()):
            if going[row]:
                answers[row].append(token)
                going[row] = token not in last
        if not any(going):
            break
        mask, position = torch.cat([mask, torch.ones_like(ids)], dim=1), position[:, -1:] + 1
    return answers
