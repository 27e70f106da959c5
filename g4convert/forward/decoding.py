"""Decoding with a model's own KV cache, one token after the other: the likeliest, or drawn at temperature 1.

Only the last token's logits are computed: at 262,144 ids, those of a prompt of 4,096 tokens would take 2 GiB in bf16
and as much again for the softcap. transformers' `generate` gives the same greedy tokens; here each is known at
once. Pictures and sounds go into the first call only, as there.

Letters: b rows of a batch, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from g4convert.errors import GateError
from g4convert.forward.conversations import placeholders
from g4convert.forward.media import call
from g4convert.forward.models import Config, Model, cache_name, context_of


def end_tokens(model: Model) -> list[int]:
    """Return the ids that end an answer."""
    for owner in (getattr(model, "generation_config", None), model.config, model.config.get_text_config()):
        tokens = getattr(owner, "eos_token_id", None)
        if tokens is not None:
            return [tokens] if isinstance(tokens, int) else list(tokens)
    return []


def pad(rows: Sequence[Sequence[int]], config: Config) -> dict[str, torch.Tensor]:
    """Return the arguments of a forward over rows of ids of different lengths, padded on the left, each [b, t]."""
    width, pad = max(map(len, rows)), config.get_text_config().pad_token_id or 0
    place, padding = torch.arange(width), torch.tensor([width - len(row) for row in rows])[:, None]
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + [*row] for row in rows]),
        "attention_mask": (place >= padding).long(),
        "position_ids": (place - padding).clamp(min=0),
    }


class Decoder:
    """Step-by-step decoder: a prefill, then one token for each row at a time.

    Args:
        model: a model with a Gemma 4 forward and a cache, on any device.
        arguments: arguments of the forward over the question; with a mask, they have positions, too.

    Attributes:
        logits: of the last token, float32 [b, V], on the CPU.
    """

    def __init__(self, model: Model, arguments: Mapping[str, Any]) -> None:
        self._model, self._name = model, cache_name(model)
        self._mask, self._place = arguments.get("attention_mask"), arguments.get("position_ids")
        self.logits = self._run(arguments)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token for each row, [b, 1], and return the logits after it."""
        arguments: dict[str, Any] = {"input_ids": ids, self._name: self._cache}
        if self._mask is not None and self._place is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
            self._place = self._place[:, -1:] + 1
            arguments |= {"attention_mask": self._mask, "position_ids": self._place}
        self.logits = self._run(arguments)
        return self.logits

    def finite(self) -> torch.Tensor:
        """Return the logits.

        Raises:
            GateError: one is not finite.
        """
        if not bool(self.logits.isfinite().all()):
            raise GateError("the model's logits are not finite", hint="`g4convert verify` finds out where")
        return self.logits

    def _run(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        output = call(self._model, {**arguments, "logits_to_keep": 1}, use_cache=True)
        self._cache = output[self._name]
        logits: torch.Tensor = output.logits[:, -1].float().cpu()
        return logits


def greedy(model: Model, ids: Sequence[int], *, max_new_tokens: int) -> Iterator[int]:
    """Continue a text, and yield each likeliest token as soon as it is known.

    Args:
        model: see `Decoder`.
        ids: tokens of the text so far, at least one.
        max_new_tokens: most tokens, at least one; an id that ends an answer stops earlier, and is yielded, too; so
            does the end of the model's context.

    Raises:
        GateError: a logit is not finite.
    """
    decoder, most = Decoder(model, {"input_ids": torch.tensor([list(ids)])}), context_of(model.config)
    for count in range(1, max_new_tokens + 1):
        token = int(decoder.finite()[0].argmax())
        yield token
        if count == max_new_tokens or token in end_tokens(model) or len(ids) + count == most:
            return
        decoder.step(torch.tensor([[token]]))


def draw(
    model: Model, questions: Sequence[Sequence[int]], *, max_new_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """Draw an answer to each question: what the model itself would say, for calibration.

    Args:
        model: see `Decoder`.
        questions: ids of each question, at least one.
        max_new_tokens: most tokens of an answer; an id that ends it stops earlier, and is returned, too; so does the
            end of the model's context.
        generator: random generator on the CPU: its seed gives the same answers on the same device in the same batches.

    Returns:
        The ids of the answers. Placeholders of pictures and sounds are never drawn.

    Raises:
        GateError: a logit is not finite.
    """
    decoder = Decoder(model, pad(questions, model.config))
    barred, last = torch.tensor(placeholders(model.config), dtype=torch.int64), end_tokens(model)
    most = context_of(model.config)
    answers: list[list[int]] = [[] for _ in questions]
    going = [True] * len(questions)
    for remaining in reversed(range(max_new_tokens)):
        shares = decoder.finite().index_fill(-1, barred, -torch.inf).softmax(-1)
        ids = torch.multinomial(shares, 1, generator=generator)
        for row, token in enumerate(ids[:, 0].tolist()):
            if going[row]:
                answers[row].append(token)
                going[row] = token not in last and len(questions[row]) + len(answers[row]) != most
        if not remaining or not any(going):
            break
        decoder.step(ids)
    return answers
