"""Statistics of the inputs of a model's Linears: the mean square of each input channel, and the number of tokens.

Linears that share inputs share an entry, under the first of them (`layers.3.self_attn.q_proj` also for k and v); the
experts of a layer share one entry. An expert's statistics are blended with the mean over all experts of its layer,
which counts as much as 32 tokens. An expert without tokens gets that mean alone.

Letters: k inputs, e experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from g4convert.array_types import F32, I64
from g4convert.conversion.identity import Model
from g4convert.names import Name

FEW: Final = 32
"""Weight, in tokens, of a layer's mean over all experts; assumed: no model at hand has experts with so few tokens."""
MEAN_SQUARE: Final = ".mean_square"
TOKENS: Final = ".tokens"

_SHARED: Final = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Projections that take the same inputs as another projection, by that projection."""


def source_of(path: str) -> str:
    """Return the module under which a Linear's input statistics are stored.

    Args:
        path: path of the Linear in the decoder, such as `layers.3.mlp.up_proj` or `layers.3.experts.7.down_proj`.

    Returns:
        For these examples `layers.3.mlp.gate_proj` and `layers.3.experts.down_proj`.
    """
    name = Name(path)
    owner, projection = name.cut()
    if name.expert is not None:
        owner = name.experts
    first = _SHARED.get(projection, projection)
    return f"{owner}.{first}" if owner else first


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """Input statistics of one module, or of the experts of a layer.

    Args:
        mean_square: E[x^2], float32 [k] or [e, k]; zeros for an expert without tokens.
        tokens: number of tokens seen, int64 [1] or [e].
    """

    mean_square: F32
    tokens: I64

    def of_expert(self, expert: int) -> F32:
        """Return E[x^2] of one expert, float32 [k], blended with the mean over all experts, weighted as 32 tokens."""
        mean, share = self.mean_square[expert].astype(np.float64), float(self.tokens[expert])
        whole = max(int(self.tokens.sum()), 1)
        prior = (self.tokens[:, None] * self.mean_square.astype(np.float64)).sum(axis=0) / whole
        blended: F32 = ((share * mean + FEW * prior) / (share + FEW)).astype(np.float32)
        return blended


@dataclass(frozen=True, slots=True)
class Coverage:
    """Distribution of tokens over the experts of a model.

    Args:
        experts: number of experts.
        without: number of experts without tokens.
        few: number of experts with at least one token, but fewer than `FEW`.
        least: fewest tokens of an expert.
        median: median number of tokens of an expert.
    """

    experts: int
    without: int
    few: int
    least: int
    median: int

    @classmethod
    def of(cls, tokens: I64) -> "Coverage":
        """Return the coverage of token counts by expert, int64 [experts]."""
        without, few = int((tokens == 0).sum()), int(((tokens > 0) & (tokens < FEW)).sum())
        return cls(len(tokens), without, few, int(tokens.min()), int(np.median(tokens)))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Input statistics of all Linears of a model.

    Args:
        inputs: statistics by module; see `source_of`.
        model: the model that was run; None if the file does not name it.
        origin: program that recorded them: `g4convert` or `llama.cpp`.
        tokens: sha256 of the token ids; for a file without ids, sha256 of the file.
        samples: number of sequences of token ids; for a file without ids, number of its chunks.
        length: tokens of a sequence or chunk.
        kinds: number of token ids by kind of text; empty if unknown.
    """

    inputs: Mapping[str, InputStatistics]
    model: Model | None
    origin: str = "g4convert"
    tokens: str = ""
    samples: int = 0
    length: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)

    def of(self, path: str) -> F32:
        """Return E[x^2] of a Linear's inputs, float32 [k].

        Args:
            path: path of the Linear in the decoder, such as `layers.3.mlp.up_proj`.

        Raises:
            KeyError: there are no statistics of this Linear.
        """
        statistics, expert = self.inputs[source_of(path)], Name(path).expert
        return statistics.mean_square if expert is None else statistics.of_expert(expert)

    @property
    def hash(self) -> str:
        """Hash over all statistics that affect a conversion."""
        return hash_of(self.arrays())

    @property
    def coverage(self) -> Coverage | None:
        """Distribution of tokens over all experts; None for a model without experts."""
        counts = [inputs.tokens for inputs in self._experts.values()]
        return Coverage.of(np.concatenate(counts)) if counts else None

    @property
    def _experts(self) -> Mapping[str, "InputStatistics"]:
        """Statistics of the inputs of each layer's experts, which gate and up share, by the experts' module."""
        return {
            Name(name).experts: inputs
            for name, inputs in self.inputs.items()
            if Name(name).experts and Name(name).projection == "gate_proj"
        }

    def experts_with(self, most: int) -> list[str]:
        """Return the experts with at most `most` tokens, as `layers.0.experts.3`."""
        return [
            f"{experts}.{expert}"
            for experts, inputs in self._experts.items()
            for expert in np.flatnonzero(inputs.tokens <= most)
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the tensors of a calibration file: `MODULE.mean_square` and `MODULE.tokens`."""
        arrays: dict[str, NDArray[Any]] = {}
        for name in sorted(self.inputs):
            arrays[name + MEAN_SQUARE], arrays[name + TOKENS] = self.inputs[name].mean_square, self.inputs[name].tokens
        return arrays


def hash_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 over the names, shapes, dtypes and bytes of arrays."""
    digest = sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
