"""A resident model on fixed token ids: parts are rounded, the model runs, the weights are restored.

    first forward             records each layer's output, and the keys and values it shares with later layers
    a change in layer l       layers before l replay their recorded output; l and later layers run
    a change in a table       only the rows of these ids are rounded; all layers run
    a change in the head      no layer runs; only the rows of the compared tokens are rounded

The model's own forward runs in every case, so masks, rotary tables and per-layer inputs are transformers'.

Letters: s sequences, t tokens of each, h hidden size, p judged positions, m compared tokens of each.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from g4convert.array_types import F64, I32
from g4convert.devices import device_of
from g4convert.engines.limits import Packing
from g4convert.errors import InputError
from g4convert.fitting.choices import Form
from g4convert.fitting.divergence import Divergence
from g4convert.fitting.parts import Part
from g4convert.fitting.rounding import Rounder
from g4convert.forward.logits import Head
from g4convert.forward.models import Model, replaced_layers
from g4convert.gemma4 import Role, Weight
from g4convert.planning.rules import PackRole

_Replacement: TypeAlias = tuple[Any, str, torch.nn.Module | torch.nn.Parameter]
"""A module, an attribute's name, and the value to set."""
_TABLES: Final = frozenset({PackRole.EMBEDDING, PackRole.PLE_EMBEDDING})
_SKIPPED: Final = 1
"""Positions at the start of a sequence that are not judged: a token after BOS alone has no context."""


class _Recorded(torch.nn.Module):
    """Replacement of a layer that returns its recorded output.

    Args:
        states: output of the layer, [s, t, h].
        left: keys and values that the layer shares with later layers, by kind of attention.
    """

    def __init__(self, states: torch.Tensor, left: Mapping[str, Any]) -> None:
        super().__init__()
        self._states, self._left = states, left

    def forward(self, *_: object, shared_kv_states: Any = None, **__: object) -> torch.Tensor:  # noqa: ANN401 -- a dict
        """Return the recorded output [s, t, h] and share the keys and values; other arguments are ignored."""
        if shared_kv_states is not None:
            shared_kv_states.update(self._left)
        return self._states


class _Recording(torch.nn.Module):
    """Wrapper of a layer that runs it and records its output and shared keys and values."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self.given: _Recorded | None = None

    def forward(self, *args: Any, shared_kv_states: Any = None, **options: Any) -> torch.Tensor:  # noqa: ANN401 -- a dict
        """Run the layer, record its results in `given`, and return its output."""
        before = {} if shared_kv_states is None else dict(shared_kv_states)
        states: torch.Tensor = self._layer(*args, shared_kv_states=shared_kv_states, **options)
        after = {} if shared_kv_states is None else dict(shared_kv_states)
        left = {key: value for key, value in after.items() if before.get(key) is not value}
        self.given = _Recorded(states, left)
        return states


class _Table(torch.nn.Module):
    """Replacement of an embedding that holds the rows of some ids only.

    Args:
        ids: the ids, ascending, int64 [u].
        rows: their rows, multiplied by the embedding's scale, [u, k].
    """

    def __init__(self, ids: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__()
        self._ids, self._rows = ids, rows

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look up ids [...] and return rows [..., k]."""
        return self._rows[torch.searchsorted(self._ids, input_ids.contiguous())]


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A model and its recorded results on fixed token ids.

    Args:
        model: resident model with an output head.
        rounder: rounds its weights.
        ids: token ids, int64 [s, t], on the model's device.
        layers: recorded output of each layer.
        states: input of the head at the judged positions, [p, h].
        original: next-token probabilities of the unchanged model.
    """

    model: Model
    rounder: Rounder
    ids: torch.Tensor
    layers: tuple[_Recorded, ...]
    states: torch.Tensor
    original: Divergence

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, ids: I32, rounder: Rounder) -> "Bench":
        """Run the unchanged model once and record its results.

        Args:
            model: resident model.
            ids: token ids, [s, t].
            rounder: rounds its weights.

        Raises:
            InputError: the last states are NaN or infinite.
        """
        token_ids = torch.from_numpy(ids.astype(np.int64)).to(device_of(model))
        recorders = [_Recording(layer) for layer in model.get_decoder().layers]
        with replaced_layers(model, recorders):
            states = _run_decoder(model, token_ids)
        if not bool(states.isfinite().all()):
            hint = "the checkpoint is damaged, or its numbers are too large for this dtype: --dtype float32"
            raise InputError("the model as it is gives states that are NaN or infinite", hint=hint)
        layers = tuple(recorder.given for recorder in recorders if recorder.given is not None)
        return cls(model, rounder, token_ids, layers, states, Divergence.of(Head.of(model), states))

    @torch.no_grad()
    def losses(self, forms: Iterable[tuple[Part, Form]]) -> F64:
        """Return the KL to the unchanged model in nats, the mean of each sequence, [s].

        Args:
            forms: parts and their packings; all other parts stay unchanged.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        changes = [(part, form) for part, form in forms if form is not None]
        body = [(part, form) for part, form in changes if part.role is not PackRole.LM_HEAD]
        with ExitStack() as stack:
            for part, form in body:
                stack.enter_context(self._replace_weights(part, form))
            states = self._run_from(min((part.unit.layer or 0 for part, _ in body), default=len(self.layers)))
        head = [self._round_head_rows(part.weights[0], form) for part, form in changes if part.role is PackRole.LM_HEAD]
        kl = self.original.kl(states, head[0] if head else None)
        losses: F64 = kl.view(len(self.ids), -1).mean(-1).numpy()
        return losses

    def _run_from(self, first: int) -> torch.Tensor:
        """Return the head's input [p, h]; layers before `first` replay their recorded output."""
        if first == len(self.layers):
            return self.states
        own = self.model.get_decoder().layers
        with replaced_layers(self.model, [*self.layers[:first], *own[first:]]):
            return _run_decoder(self.model, self.ids)

    @contextmanager
    def _replace_weights(self, part: Part, form: Packing) -> Iterator[None]:
        """Give the model the rounded weights of a part; restore the original weights on exit."""
        round_part = (
            self._round_table
            if part.role in _TABLES
            else self._round_experts
            if part.role is PackRole.EXPERTS
            else self._round_linears
        )
        with ExitStack() as stack:
            for owner, name, value in round_part(part, form):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            yield

    def _round_table(self, part: Part, form: Packing) -> Iterator[_Replacement]:
        """Yield the small rounded table that replaces an embedding."""
        decoder, weight = self.model.get_decoder(), part.weights[0]
        name = weight.module.last
        own, ids = getattr(decoder, name), torch.unique(self.ids)
        rows = self.rounder.round_weight(weight, own.weight[ids.to(own.weight.device)], form)
        yield decoder, name, _Table(ids, rows * own.embed_scale.to(rows.dtype))

    def _round_linears(self, part: Part, form: Packing) -> Iterator[_Replacement]:
        """Yield the rounded weights of Linears; key and value weights that no layer reads are not in the model."""
        for weight in part.weights:
            if weight.role is not Role.KV_SHARED:
                path = weight.module.last if part.unit.layer is None else weight.module.in_layer
                owner = self._find_layer(weight).get_submodule(path)
                yield owner, "weight", _make_parameter(self.rounder.round_weight(weight, owner.weight, form))

    def _round_experts(self, part: Part, form: Packing) -> Iterator[_Replacement]:
        """Yield a layer's two rounded expert tensors: [e, 2i, h] with gate rows first, and [e, h, i]."""
        owner = self._find_layer(part.weights[0]).experts
        tensors = {name: getattr(owner, name).detach().clone() for name in ("gate_up_proj", "down_proj")}
        for weight in part.weights:
            module = weight.module
            matrix = tensors["down_proj" if module.projection == "down_proj" else "gate_up_proj"][module.expert]
            n, is_up = weight.shape[0], module.projection == "up_proj"
            rows = matrix[n:] if is_up else matrix[:n]
            rows.copy_(self.rounder.round_weight(weight, rows, form))
        for name, value in tensors.items():
            yield owner, name, _make_parameter(value)

    def _find_layer(self, weight: Weight) -> Model:
        """Return the layer that holds a weight, or the decoder for a weight outside the layers."""
        decoder, number = self.model.get_decoder(), weight.module.decoder_layer
        return decoder if number is None else decoder.layers[number]

    def _round_head_rows(self, weight: Weight, form: Packing) -> torch.Tensor:
        """Round the head's rows of the compared tokens, [p, m, h]."""
        matrix = Head.of(self.model).matrix
        ids, places = torch.unique(self.original.ids, return_inverse=True)
        rows = self.rounder.round_weight(weight, matrix[ids.to(matrix.device)], form)
        return rows[places.to(rows.device)]


def _make_parameter(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)


def _run_decoder(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """Run the decoder and return the head's input at the judged positions, [p, h]."""
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    judged: torch.Tensor = states[:, _SKIPPED:].flatten(0, 1).contiguous()
    return judged
