"""Distance of quantized models from their original: mean KL and agreement on the likeliest token, of each window.

A vocabulary of 262,144 makes 1 MiB of logits for a token. So the models run up to the last norm, and their final states
become logits 64 tokens at a time, in a buffer that is made once. The original's probabilities are kept: 1 GiB for 1,024
tokens, which is why one token in three is judged. Most models share the head.

Errors are paired: a window is hard or easy for every method, so methods are compared window by window. The standard
error of a difference is that of the windows' mean differences; tokens of one window are not independent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Final

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open

__all__ = ["Judge", "Judged", "error", "stored"]

_TOKENS: Final = 64
_EVERY: Final = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """Loss of one method.

    Args:
        kl: mean KL from the original in nats, of each window.
        same: share of tokens with the same likeliest successor, of each window.
    """

    kl: tuple[float, ...]
    same: tuple[float, ...]


class Judge:
    """A model, and what it says of the windows that judge.

    Args:
        model: directory of the original, a text model of transformers.
        windows: rows of ids of one length.
    """

    def __init__(self, model: Path, windows: Sequence[Sequence[int]]) -> None:
        self._ids = torch.tensor(windows)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._weights = {name: weight.detach() for name, weight in self._model.named_parameters()}
        head = self._model.lm_head.weight.detach()
        self._head = head if head.dtype is torch.float32 else head.float()
        states = self._states().flatten(0, 1)
        self._p = torch.empty(len(states), len(self._head))
        self._entropy = torch.empty(len(states), dtype=torch.float64)
        torch.mm(states, self._head.T, out=self._p)
        self._best = self._p.argmax(-1)
        for rows in _runs(len(states)):
            logs = self._p[rows].log_softmax(-1)
            torch.exp(logs, out=self._p[rows])
            self._entropy[rows] = (self._p[rows] * logs).double().sum(-1)
        self._q = torch.empty(_TOKENS, len(self._head))

    def judge(
        self, weights: Callable[[str, torch.Tensor], torch.Tensor | None], head: torch.Tensor | None = None
    ) -> Judged:
        """Judge the model with other weights.

        Args:
            weights: gives, by the parameter's name and its value, what stands in its place, or None to leave it.
            head: another head, float32 [V, h]; None has the original's.
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                other = weights(name, self._weights[name])
                parameter.data = self._weights[name] if other is None else other
            states = self._states()
            other = self._head if head is None else head
            parts = [self._compare(states.flatten(0, 1)[rows], rows, other) for rows in _runs(len(self._best))]
        kl, same = (
            torch.cat(part).double().view(len(states), -1).mean(-1).tolist() for part in zip(*parts, strict=True)
        )
        return Judged(tuple(kl), tuple(same))

    def _states(self) -> torch.Tensor:
        """The states that the head is given, float32 [windows, judged tokens, h]."""
        with torch.no_grad():
            rows = [self._model.model(input_ids=ids[None], use_cache=False).last_hidden_state for ids in self._ids]
        return torch.cat(rows)[:, _EVERY - 1 :: _EVERY].contiguous()

    def _compare(self, states: torch.Tensor, rows: slice, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """KL of each token, and whether the likeliest successor is the same."""
        q = self._q[: len(states)]
        torch.mm(states, head.T, out=q)
        same, normal = q.argmax(-1) == self._best[rows], q.logsumexp(-1).double()
        crossed = q.mul_(self._p[rows]).sum(-1, dtype=torch.float64)
        return self._entropy[rows] - crossed + normal, same


def error(values: Sequence[float]) -> float:
    """Return the standard error of a mean."""
    return stdev(values) / len(values) ** 0.5


def stored(directory: Path) -> Callable[[str, torch.Tensor], torch.Tensor | None]:
    """Packed weights of a pack-quantized checkpoint in fp32, experts joined as transformers has them."""
    files = [safe_open(path, "pt") for path in sorted(directory.glob("*.safetensors"))]
    places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict

    def one(module: str) -> torch.Tensor:
        packed, scale, shape = (
            places[f"{module}.weight_{part}"].get_tensor(f"{module}.weight_{part}")
            for part in ("packed", "scale", "shape")
        )
        codes = unpack_from_int32(packed, 4, torch.Size(shape.tolist())).float()
        return (codes.view(*scale.shape, -1) * scale.float()[:, :, None]).view(codes.shape)

    def find(name: str, value: torch.Tensor) -> torch.Tensor | None:
        module = name.removesuffix(".weight")
        if f"{module}.weight_packed" in places:
            return one(module)
        parent, _, leaf = name.rpartition(".")
        if not parent.endswith(".experts"):
            return None
        parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else ("down_proj",)
        return torch.stack([torch.cat([one(f"{parent}.{e}.{part}") for part in parts]) for e in range(len(value))])

    return find


def _runs(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _TOKENS, count)) for first in range(0, count, _TOKENS))
