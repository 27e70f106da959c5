"""Statistics of what the Linears of a model are given: the mean square of each input, and on how many tokens.

There is one entry for every module that is the first to take some inputs (`layers.3.self_attn.q_proj`; k and v take the
same), and one for the experts of a layer. An expert that few tokens were routed to borrows from all experts of its
layer: their mean counts as much as 32 tokens. One without tokens has that mean alone.

Letters: k inputs, e experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from g4convert.conversion.identity import Model
from g4convert.names import Name

__all__ = ["FEW", "MEAN_SQUARE", "TOKENS", "Coverage", "Inputs", "Statistics", "hash_of", "source_of"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

FEW: Final = 32
"""Tokens that the mean of all experts of a layer counts for: assumed, as no model at hand leaves experts that short."""
MEAN_SQUARE: Final = ".mean_square"
TOKENS: Final = ".tokens"

_SHARED: Final = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Projections that take the inputs of another."""


def source_of(path: str) -> str:
    """The module whose inputs a Linear takes.

    Args:
        path: of the Linear in the decoder, such as `layers.3.mlp.up_proj` or `layers.3.experts.7.down_proj`.

    Returns:
        `layers.3.mlp.gate_proj`, `layers.3.experts.down_proj`.
    """
    owner, _, projection = path.rpartition(".")
    one = Name(path)
    if one.expert is not None:
        owner = one.experts
    first = _SHARED.get(projection, projection)
    return f"{owner}.{first}" if owner else first


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one module, or of the experts of a layer.

    Args:
        mean_square: E[x^2], float32 [k] or [e, k]; zeros where no token was seen.
        tokens: int64 [1] or [e].
    """

    mean_square: F32
    tokens: I64

    def of_expert(self, expert: int) -> F32:
        """E[x^2] of one expert, [k]: its own and, counting as 32 tokens, that of all experts."""
        own, share = self.mean_square[expert].astype(np.float64), float(self.tokens[expert])
        whole = max(int(self.tokens.sum()), 1)
        prior = (self.tokens[:, None] * self.mean_square.astype(np.float64)).sum(axis=0) / whole
        blended: F32 = ((share * own + FEW * prior) / (share + FEW)).astype(np.float32)
        return blended


@dataclass(frozen=True, slots=True)
class Coverage:
    """Tokens that the experts of a model met.

    Args:
        experts: how many there are.
        without: how many met none.
        few: how many met some, but fewer than `FEW`.
        least: fewest tokens of one.
        median: of all.
    """

    experts: int
    without: int
    few: int
    least: int
    median: int

    @classmethod
    def of(cls, met: I64) -> "Coverage":
        """Count, from the tokens that each expert met, [experts]."""
        without, few = int((met == 0).sum()), int(((met > 0) & (met < FEW)).sum())
        return cls(len(met), without, few, int(met.min()), int(np.median(met)))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Inputs of a model's Linears.

    Args:
        inputs: by the first module that takes them.
        model: the model that was run; None where a file does not say.
        origin: what counted: `g4convert` or `llama.cpp`.
        tokens: sha256 of the token ids; of a file without ids, of the file.
        samples: sequences of token ids; of a file without ids, its chunks.
        length: tokens of each.
        kinds: ids by kind of text; empty where they are not known.
    """

    inputs: Mapping[str, Inputs]
    model: Model | None
    origin: str = "g4convert"
    tokens: str = ""
    samples: int = 0
    length: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)

    def of(self, path: str) -> F32:
        """E[x^2] of a Linear's inputs, float32 [k].

        Args:
            path: of the Linear in the decoder, such as `layers.3.mlp.up_proj`.

        Raises:
            KeyError: nothing is known of it.
        """
        found, expert = self.inputs[source_of(path)], Name(path).expert
        return found.mean_square if expert is None else found.of_expert(expert)

    @property
    def hash(self) -> str:
        """The hash over everything that shows in a conversion."""
        return hash_of(self.arrays())

    @property
    def coverage(self) -> Coverage | None:
        """Tokens that experts met; None of a model without experts."""
        each = [inputs.tokens for name, inputs in self.inputs.items() if name.endswith(_EXPERTS)]
        return Coverage.of(np.concatenate(each)) if each else None

    def experts_with(self, most: int) -> list[str]:
        """Experts that so many tokens or fewer were routed to, as `layers.0.experts.3`."""
        return [
            f"{name.removesuffix('.gate_proj')}.{expert}"
            for name, inputs in self.inputs.items()
            if name.endswith(_EXPERTS)
            for expert in np.flatnonzero(inputs.tokens <= most)
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Tensors of a calibration file: `MODULE.mean_square` and `MODULE.tokens`."""
        found: dict[str, NDArray[Any]] = {}
        for name in sorted(self.inputs):
            found[name + MEAN_SQUARE], found[name + TOKENS] = self.inputs[name].mean_square, self.inputs[name].tokens
        return found


_EXPERTS: Final = "experts.gate_proj"


def hash_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 of arrays: names, shapes, dtypes and bytes."""
    digest = sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
