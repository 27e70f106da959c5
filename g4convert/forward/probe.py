"""A probe: one forward call of a model, and the predictions in it that are scored.

`verification.probes` makes them, `forward.candidate` runs them, and a comparison of two models looks at the rows that
they count. Engines take no tensors: `verification.engine.prompts` turns a probe into sequences for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One forward call and its scored predictions; its tensors must not be changed.

    Shapes: b rows, t tokens, n scored predictions.
    """

    name: str
    bucket: str
    arguments: Mapping[str, Any]
    """Keyword arguments of the model's forward, on the CPU; see `forward.media.call` for videos."""
    response: torch.Tensor
    """bool [b, t]: logits at this position predict a token of the answer."""
    targets: torch.Tensor
    """int64 [n]: the predicted tokens, row by row."""

    @classmethod
    def of(cls, name: str, bucket: str, arguments: Mapping[str, Any], answers: torch.Tensor) -> "Probe":
        """Make a probe that scores the tokens of answers.

        Args:
            name: unique name.
            bucket: one of `KINDS`, or the user's own.
            arguments: arguments of the forward, with `input_ids` [b, t].
            answers: bool [b, t], tokens that are part of an answer; none may be the first of its row.
        """
        response = answers.roll(-1, dims=1)
        return cls(name, bucket, arguments, response, arguments["input_ids"].roll(-1, dims=1)[response])

    def thinned(self, most: int) -> "Probe":
        """Return the probe with at most `most` scored predictions, spread evenly."""
        count = len(self.targets)
        if count <= most:
            return self
        chosen = torch.linspace(0, count - 1, most).round().long()
        response = torch.zeros_like(self.response).flatten()
        response[self.scored[chosen]] = True
        return replace(self, response=response.view(self.response.shape), targets=self.targets[chosen])

    def begun(self, tokens: int) -> "Probe":
        """Return the probe's first tokens; a batch, or a probe with media or no answer among them, stays whole."""
        if (
            self.arguments.keys() != {"input_ids"}
            or len(self.response) > 1
            or not bool(self.response[:, :tokens].any())
        ):
            return self
        response = self.response[:, :tokens]
        arguments = {"input_ids": self.arguments["input_ids"][:, :tokens]}
        return replace(self, arguments=arguments, response=response, targets=self.targets[: int(response.sum())])

    @property
    def scored(self) -> torch.Tensor:
        """int64 [n]: scored rows of logits flattened to [b * t, vocabulary]."""
        return self.response.flatten().nonzero().flatten()

    @property
    def sequences(self) -> torch.Tensor:
        """int64 [n]: row of the batch of each scored prediction."""
        return self.scored // self.response.shape[1]

    @property
    def attended(self) -> torch.Tensor:
        """Mask of the b * t rows that are not padding, bool [b * t]."""
        mask = self.arguments.get("attention_mask")
        return torch.ones(self.response.numel(), dtype=torch.bool) if mask is None else mask.bool().flatten()
