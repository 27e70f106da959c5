"""Runs a packed checkpoint whose scales can be trained: codes stay, each scale has a trainable factor.

    weight = code * start * exp(log)                    while it is trained, float32; `log` starts at 0
    weight = code * bf16(start * exp(share * log))      with a share of the trained change, as it is stored

Only `log` is a parameter. Products keep their inputs for the backward pass, but no dense weight: it dequantizes the
words again. Decoder, masks, norms, routers, shared keys and values, per-layer inputs are transformers' own.

Letters: t tokens, n out_features, k in_features, g groups of a row, h hidden size.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers.integrations.moe import ExpertsInterface

from g4convert.array_types import I32
from g4convert.forward.experts import projection
from g4convert.forward.filling import filling_of
from g4convert.forward.load import load
from g4convert.forward.models import Model
from g4convert.forward.modules import PackedWeight, W4A16Linear, unpack
from g4convert.forward.pieces import Rows

_EXPERTS: Final = "g4_scaled"
"""Name of the experts implementation with trained scales."""
_PROJECTIONS: Final = ("gate_up", "down")


class _Product(torch.autograd.Function):
    """Product of x [..., k] and the transposed weight, with gradients of x and of the scales' logs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, log: torch.Tensor, scaled: "Scaled") -> torch.Tensor:  # noqa: ANN401 -- torch's
        """Return the product of [..., k] and the transposed weight, [..., n]."""
        ctx.save_for_backward(x, log)
        ctx.scaled = scaled
        return x @ scaled.dense(log).T

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:  # noqa: ANN401 -- torch's
        """Return the gradients of x [..., k] and of `log` [n, g] for that of the product [..., n]."""
        x, log = ctx.saved_tensors
        scaled: Scaled = ctx.scaled
        back = slope @ scaled.dense(log) if ctx.needs_input_grad[0] else None
        of_weight = slope.reshape(-1, slope.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return back, scaled.gathered(of_weight, log), None


class Scaled(torch.nn.Module):
    """A Linear on packed words with scales to train.

    Args:
        weight: packed weight, [n, k].
        names: names of the stored scales, concatenated by rows: a single one, or an expert's gate and up.

    Attributes:
        log: trained logarithm of each scale's factor, float32 [n, g].
        share: share of the trained change to apply, with scales rounded to bf16 as stored; None while they are trained.
    """

    def __init__(self, weight: PackedWeight, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self._weight, self._start = weight, weight.scale.float().clone()
        self.log = torch.nn.Parameter(torch.zeros_like(self._start))
        self.share: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product of [..., k] and the transposed weight, [..., n]."""
        product: torch.Tensor = _Product.apply(x, self.log, self)  # type: ignore[no-untyped-call]
        return product

    def dense(self, log: torch.Tensor) -> torch.Tensor:
        """Return the dequantized weight, float32 [n, k]."""
        of = self._weight
        return PackedWeight(of.words, self._scale(log), None, of.k, of.num_bits).dense(torch.float32)

    def gathered(self, slope: torch.Tensor, log: torch.Tensor) -> torch.Tensor:
        """Return the gradient of `log` [n, g] for the weight's gradient `slope` [n, k], which is overwritten."""
        codes = unpack(self._weight.words, self._weight.k, self._weight.num_bits)
        each = slope.mul_(codes).view(*log.shape, -1).sum(-1)
        return each.mul_(self._scale(log))

    def stored(self) -> dict[str, torch.Tensor]:
        """Return the scales by stored name, bf16 [rows, g]."""
        parts = self._scale(self.log.detach()).bfloat16().chunk(len(self.names))
        return {name: part.clone() for name, part in zip(self.names, parts, strict=True)}

    def _scale(self, log: torch.Tensor) -> torch.Tensor:
        if self.share is None:
            return self._start * log.exp()
        return (self._start * (self.share * log).exp()).bfloat16().float()


@dataclass(frozen=True, slots=True)
class Student:
    """A quantized decoder with scales to train."""

    model: Model
    scaled: tuple[Scaled, ...]

    @classmethod
    def open(cls, directory: Path, names: Collection[str]) -> "Student":
        """Load a packed checkpoint.

        Args:
            directory: the checkpoint; may be an OUT.partial with all layers.
            names: names of the stored scales to train; all others stay.

        Raises:
            G4Error: see `forward.load.load`.
        """
        model = load(directory, decoder_only=True)
        scaled = tuple(one for one in _replace_packed(model) if {*one.names} <= {*names})
        return cls(model, scaled)

    def states(self, ids: I32) -> torch.Tensor:
        """Return the final states of a sequence [t], float32 [t, h]."""
        given = torch.from_numpy(ids.astype(np.int64))[None]
        found: torch.Tensor = self.model.get_decoder()(input_ids=given, use_cache=False).last_hidden_state
        return found[0]

    def go(self, share: float | None) -> None:
        """Apply a share of the trained change to all scales, rounded as stored; None returns to training."""
        for one in self.scaled:
            one.share = share

    def stored(self) -> dict[str, torch.Tensor]:
        """Return all scales by stored name, bf16 [rows, g]."""
        return {name: part for one in self.scaled for name, part in one.stored().items()}

    @property
    def logs(self) -> list[torch.Tensor]:
        """Trained logarithms, in the model's order."""
        return [one.log for one in self.scaled]


def _replace_packed(model: Model) -> Iterator[Scaled]:
    """Replace the packed modules by `Scaled` ones and yield these, in the model's order."""
    has_experts = False
    for path, module in [*model.named_modules()]:
        if isinstance(module, W4A16Linear):
            one = Scaled(module.packed, _stored_names(model, f"{path}.weight_scale"))
            model.set_submodule(path, one)
            yield one
        elif hasattr(module, "gate_up_packed"):
            has_experts = True
            for name in _PROJECTIONS:
                experts = [*_experts(projection(module, name), _stored_names(model, f"{path}.{name}_scale"))]
                setattr(module, f"{name}_scaled", torch.nn.ModuleList(experts))
                yield from experts
    if has_experts:
        model.set_experts_implementation(_EXPERTS)


def _stored_names(model: Model, name: str) -> tuple[str, ...]:
    """Return the names of the stored tensors that form one tensor of the model."""
    filling = filling_of(model)
    piece = None if filling is None else filling.pieces[name]
    if not isinstance(piece, Rows):
        raise TypeError(f"{name}: not as stored")
    return piece.names


def _experts(weights: PackedWeight | torch.Tensor, names: tuple[str, ...]) -> Iterator[Scaled]:
    """Yield a `Scaled` for each expert."""
    if not isinstance(weights, PackedWeight):
        raise TypeError(f"{names[0]}: not packed")
    each = len(names) // len(weights.words)
    for expert in range(len(weights.words)):
        yield Scaled(weights[expert], names[expert * each : (expert + 1) * each])


def _run_experts(
    experts: Any,  # noqa: ANN401 -- a module of transformers
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Run each chosen expert on its tokens and return the weighted sum, [t, h], as `by_expert` does."""
    total = torch.zeros_like(hidden_states)
    for expert in torch.unique(top_k_index).tolist():
        token, place = torch.where(top_k_index == expert)
        gate, up = experts.gate_up_scaled[expert](hidden_states[token]).chunk(2, dim=-1)
        out = experts.down_scaled[expert](experts.act_fn(gate) * up)
        total.index_add_(0, token, out * top_k_weights[token, place, None])
    return total


ExpertsInterface.register(_EXPERTS, _run_experts)
