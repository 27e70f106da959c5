"""Runs one decoder layer on all sequences, part by part.

    q, k, v      on the normed states
    o            on the attention's output
    gate, up     on the normed states behind the attention
    down         on the products of gate and up
    experts      see `experts`

Before each part runs, its Linears are met: their inputs can be kept, or their weights replaced, and what follows runs
with what they are then. A layer with per-layer inputs takes those of the sequence. A layer that shares an earlier
layer's keys and values takes those of that layer in the same walk.

Letters: s sequences, t tokens of each, h hidden size.
"""

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from g4convert.array_types import F32
from g4convert.calibration.experts import run_experts
from g4convert.calibration.replay import Replay
from g4convert.calibration.states import SCRATCH
from g4convert.calibration.work import LayerWork

Inputs: TypeAlias = Callable[[int], torch.Tensor]
"""Makes the inputs of a Linear for a sequence, [1, t, k]."""

_ATTENTION_OUT, _MLP_IN = f"{SCRATCH}attention", f"{SCRATCH}mlp"


@dataclass(frozen=True, slots=True)
class Walk:
    """Run of one layer on all sequences, part by part.

    Args:
        work: the layer, and what its experts are packed with.
        meet: called before Linears that share their inputs run, with the layer, their paths, and a function that makes
            the inputs of a sequence; may replace their weights.
        of: a part of the names of keys and values that layers share, for those of another model.
    """

    work: LayerWork
    meet: Callable[[Any, list[str], Inputs], None]
    of: str = ""

    def run(self, layer: Any, states: F32, out: F32) -> None:  # noqa: ANN401
        """Run the layer.

        Args:
            layer: the layer, with its weights.
            states: inputs of the layer, [s, t, h]; not changed.
            out: filled with the layer's output, [s, t, h].
        """
        self._attention(layer, states, out)
        self._feed_forward(layer, out)

    def _attention(self, layer: Any, states: F32, out: F32) -> None:  # noqa: ANN401 -- a module of transformers
        """Run the attention and fill `out` with the states behind it."""
        replay, attention = self.work.replay, layer.self_attn
        paths = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        self.meet(layer, paths, lambda s: layer.input_layernorm(replay.sequence(states, s)))
        o_proj, attention.o_proj = attention.o_proj, torch.nn.Identity()
        inner = replay.states.make(_ATTENTION_OUT, (*out.shape[:2], o_proj.in_features))
        shared = Shared(replay, layer, self.of)

        def attend(s: int) -> torch.Tensor:
            normed = layer.input_layernorm(replay.sequence(states, s))
            given, arguments = shared.given(s), replay.arguments_of(self.work.number, s)
            given_back, _ = attention(hidden_states=normed, shared_kv_states=given, **arguments)
            shared.keep(s, given)
            inner_states: torch.Tensor = given_back
            return inner_states

        for s, one in self._each(attend):
            inner[s] = one[0].cpu().numpy()
        attention.o_proj = o_proj
        self.meet(layer, ["self_attn.o_proj"], lambda s: replay.sequence(inner, s))

        def behind(s: int) -> torch.Tensor:
            added: torch.Tensor = layer.post_attention_layernorm(attention.o_proj(replay.sequence(inner, s)))
            return replay.sequence(states, s) + added

        for s, one in self._each(behind):
            out[s] = one[0].cpu().numpy()
        replay.forget(self.work.number, "self_attn.")

    def _feed_forward(self, layer: Any, out: F32) -> None:  # noqa: ANN401
        """Run the MLP and the experts; replace `out`, the states behind the attention, by the layer's output."""
        replay, mlp = self.work.replay, layer.mlp
        paths = ["mlp.gate_proj", "mlp.up_proj"]
        self.meet(layer, paths, lambda s: layer.pre_feedforward_layernorm(replay.sequence(out, s)))
        inner = replay.states.make(_MLP_IN, (*out.shape[:2], mlp.down_proj.in_features))

        def multiply(s: int) -> torch.Tensor:
            x = layer.pre_feedforward_layernorm(replay.sequence(out, s))
            product: torch.Tensor = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
            return product

        for s, one in self._each(multiply):
            inner[s] = one[0].cpu().numpy()
        for part in ("mlp.gate_proj.", "mlp.up_proj."):  # before H of down, the largest, is made
            replay.forget(self.work.number, part)
        self.meet(layer, ["mlp.down_proj"], lambda s: replay.sequence(inner, s))
        experts = run_experts(self.work, layer, out) if hasattr(layer, "experts") else None
        per_layer = replay.per_layer(self.work.number)

        def finish(s: int) -> torch.Tensor:
            residual, x = replay.sequence(out, s), mlp.down_proj(replay.sequence(inner, s))
            if experts is not None:
                x = layer.post_feedforward_layernorm_1(x) + layer.post_feedforward_layernorm_2(
                    replay.sequence(experts, s)
                )
            x = residual + layer.post_feedforward_layernorm(x)
            if per_layer is not None:
                gated = layer.act_fn(layer.per_layer_input_gate(x)) * replay.sequence(per_layer, s)
                x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(gated))
            scaled: torch.Tensor = x * layer.layer_scalar
            return scaled

        for s, one in self._each(finish):
            out[s] = one[0].cpu().numpy()

    def _each(self, call: Inputs) -> Iterator[tuple[int, torch.Tensor]]:
        return self.work.team.shared(call, self.work.replay.tokens.samples)


class Shared:
    """Keys and values of each sequence that a layer shares with later layers."""

    def __init__(self, replay: Replay, layer: Any, of: str = "") -> None:  # noqa: ANN401
        attention = layer.self_attn
        self._replay, self._samples = replay, replay.tokens.samples
        self._kind = attention.layer_type
        read = getattr(replay.config, "num_kv_shared_layers", 0) > 0  # transformers stores them in any case
        self._reads, self._writes = attention.is_kv_shared_layer, attention.store_full_length_kv and read
        self._heads = replay.config.per_layer_config[attention.layer_idx].num_key_value_heads
        shape = (self._samples, self._heads, replay.tokens.length, attention.head_dim)
        get = replay.states.make if self._writes else replay.states.open
        used = self._reads or self._writes
        self._arrays = [get(f"{of}{part}-{self._kind}", shape) for part in ("keys", "values")] if used else []

    def given(self, s: int) -> Any:  # noqa: ANN401
        """Return `shared_kv_states` for sequence `s`: filled if the layer reads shared keys and values, else empty."""
        given: UserDict[str, Any] = UserDict()
        if self._reads:
            given[self._kind] = tuple(self._replay.sequence(array, s) for array in self._arrays)
        return given

    def keep(self, s: int, given: Mapping[str, Any]) -> None:
        """Store the keys and values that the layer left in `given`, if later layers read them."""
        if self._writes:
            for array, part in zip(self._arrays, given[self._kind], strict=True):
                array[s] = part[0].cpu().numpy()
