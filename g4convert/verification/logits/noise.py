"""Noise floor of a comparison: the distance of a model from itself when only rounding differs.

    rounding   the reference in bf16 compared with the reference in float32
    noise      the reference compared with itself, with relative Gaussian noise of one rounding after each decoder
               layer: 2^-9 for bf16, whose spacing is 2^-8; more than one draw, since routers flip at random

Both are measured on the tokens that the candidate is judged on, because the floor depends on weights and tokens: it is
high if routers are undecided, and low in dense models. The floor of a metric is the worst of the sources. A candidate
near the floor is as good as rounding allows; if the floor itself is high, no verdict is possible.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from g4convert.forward.models import Model
from g4convert.verification.logits.metrics import Metrics

EPSILON: Final[Mapping[str, float]] = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-20}
"""Relative noise after each layer, by dtype. In float32 it is 16 roundings: a layer sums thousands of products in an
order that depends on the kernel, and the rounding of its output does not hide that, as it does in bf16."""

_LOWER_IS_WORSE: Final = frozenset(
    {"top1_agreement", "top1_confident", "logit_cosine", "sqnr_min", "router_jaccard_min"}
)
_AWAY_FROM_ONE: Final = frozenset({"ppl_ratio"})
_NOT_COMPARED: Final = frozenset({"tokens", "sequences", "confident_tokens", "ppl", "experts_unhit"})


@dataclass(frozen=True, slots=True)
class Floor:
    """The noise floor of every metric."""

    values: Mapping[str, float]
    sources: Mapping[str, Metrics]

    def to_dict(self) -> dict[str, Any]:
        """Return the floor as nested mappings of plain values."""
        metrics = list(self.sources.values())
        return {
            "values": dict(self.values),
            "sources": {name: source.values for name, source in self.sources.items()},
            "kl_histogram": [sum(bins) for bins in zip(*(one.kl_histogram for one in metrics), strict=True)],
            "layers": [
                {"name": layers[0].name, "sqnr": min(layer.sqnr for layer in layers)}
                for layers in zip(*(one.layers for one in metrics), strict=True)
            ],
        }


def floor(sources: Mapping[str, Metrics]) -> Floor:
    """Return the worst of the sources, metric by metric; a nan (nothing to measure on) counts only without a number."""
    values: dict[str, float] = {}
    for metrics in sources.values():
        for name, value in metrics.values.items():
            worst = values.get(name, math.nan)
            if name not in _NOT_COMPARED and (math.isnan(worst) or is_worse(name, value, worst)):
                values[name] = value
    return Floor(values, sources)


def is_worse(name: str, value: float, other: float) -> bool:
    """Return whether one value of a metric is worse than another; comparisons with nan are false."""
    if name in _AWAY_FROM_ONE:
        return abs(value - 1) > abs(other - 1)
    return value < other if name in _LOWER_IS_WORSE else value > other


@contextmanager
def adding_noise(layers: Sequence[Model], epsilon: float, *, seed: int) -> Iterator[None]:
    """Multiply the output of each layer by 1 + epsilon N(0, 1) during forwards inside.

    Args:
        layers: the decoder layers.
        epsilon: relative size of the noise.
        seed: seed of the noise; the same seed gives the same noise to the same forwards in the same order.
    """
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            hook = _add_noise(epsilon, seed * 10_007 + number)
            stack.enter_context(layer.register_forward_hook(hook, prepend=True))
        yield


def _add_noise(epsilon: float, seed: int) -> Callable[[Model, object, torch.Tensor], torch.Tensor]:
    """Return a forward hook that adds noise; it runs before the layer's other hooks, so that these see the noise."""
    generator = torch.Generator().manual_seed(seed)

    def hook(_module: Model, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        return (output.float() * (1 + epsilon * noise)).to(output.dtype)

    return hook
