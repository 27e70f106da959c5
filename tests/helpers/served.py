"""Answers of a transformers model in an engine's place: for the fake vLLM, server and candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from g4convert.forward.media import call
from g4convert.verification.engine.prompts import Started
from g4convert.verification.logits.scores import TopLogits, top_logits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from g4convert.forward.models import Model
    from g4convert.verification.engine.prompts import Prompt

_NUMBERS = {"image": 1, "video": 2, "audio": 3}
_VALUES = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features"}


def logits_of(
    model: Model, ids: Sequence[int], media: Sequence[tuple[str, Mapping[str, torch.Tensor]]]
) -> torch.Tensor:
    """Logits [t, V] of one prompt with pictures or sounds, in order, under the names of a forward's arguments."""
    arguments: dict[str, Any] = {"input_ids": torch.tensor([list(ids)])}
    for kind, tensors in media:
        types = arguments.setdefault("mm_token_type_ids", torch.zeros_like(arguments["input_ids"]))
        types[arguments["input_ids"] == getattr(model.config, f"{kind}_token_id")] = _NUMBERS[kind]
        for name, tensor in tensors.items():
            arguments[name] = torch.cat([arguments[name], tensor]) if name in arguments else tensor
        if kind == "video":
            arguments["num_frames_per_video"] = torch.tensor([len(tensors[_VALUES[kind]])])
    found: torch.Tensor = call(model, arguments, use_cache=False).logits[0].float()
    return found


class ModelEngine:
    """An engine in this process: a model, perhaps with a fault in it."""

    takes = frozenset(("image", "audio", "video"))

    def __init__(self, model: Model, **started: Any) -> None:  # noqa: ANN401 -- fields of Started
        self.model = model
        self.started = Started(**{"name": "fake", "dtype": "float32", "parameters": 1, **started})
        self._top = 0

    def start(self, longest: int, top: int) -> Started:
        """Stand in for `Engine.start`."""
        assert longest > 1
        self._top = top
        return self.started

    def score(self, prompt: Prompt) -> TopLogits:
        """Stand in for `Engine.score`."""
        media = [(item.kind, item.tensors) for item in prompt.media]
        rows = torch.tensor(prompt.rows)
        logits = logits_of(self.model, prompt.ids, media)[rows]
        return top_logits(logits, torch.tensor(prompt.ids)[rows + 1], self._top)
