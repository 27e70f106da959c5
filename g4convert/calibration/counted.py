"""Runs one unquantized layer on all sequences, and adds up the squares of its Linears' inputs.

A layer with experts runs twice: first to record the experts' inputs, then with their output; see `counted_experts`.

Letters: s sequences, t tokens, h hidden size.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import torch

from g4convert.array_types import F32
from g4convert.calibration.counted_experts import Given, Routed, run_counted
from g4convert.calibration.replay import Replay
from g4convert.calibration.squares import Hooks, Sums, add
from g4convert.calibration.team import in_order
from g4convert.calibration.walk import Shared
from g4convert.conversion.statistics import source_of


class Counted:
    """Statistics of one layer over all sequences.

    Args:
        replay: gives the layer and its arguments.
        number: number of the layer.
        pool: threads that each take a sequence; torch must run single-threaded in them.
    """

    def __init__(self, replay: Replay, number: int, pool: Executor) -> None:
        self._replay, self._number, self._pool = replay, number, pool

    def run(self, states: F32, out: F32) -> Sums:
        """Run the layer.

        Args:
            states: inputs of the layer, [s, t, h]; not changed.
            out: filled with the layer's output, [s, t, h].

        Returns:
            Sums of squares of the Linears' inputs.
        """
        with torch.no_grad(), self._replay.layer(self._number) as layer:
            if not hasattr(layer, "experts"):
                return self._pass(layer, states, out)
            experts, routed = layer.experts, Routed()
            layer.experts = routed
            try:
                sums, given = self._to_experts(layer, states, routed)
                added, theirs = run_counted(self._replay, self._number, experts, given, self._pool)
                self._pass(layer, states, out, routed, added)
            finally:
                layer.experts = experts
            return sums | theirs

    def _pass(
        self,
        layer: Any,  # noqa: ANN401 -- here and below: a module of transformers
        states: F32,
        out: F32,
        routed: Routed | None = None,
        added: F32 | None = None,
    ) -> Sums:
        """Run the layer on each sequence, fill `out`, and return the sums."""
        total: Sums = {}
        for s, (given, sums) in self._called(layer, states, routed, added):
            out[s] = given[0].cpu().numpy()
            add(total, sums)
        return total

    def _to_experts(self, layer: Any, states: F32, routed: Routed) -> tuple[Sums, Given]:  # noqa: ANN401
        """Run the layer on each sequence; return the sums and the recorded inputs of the experts."""
        total: Sums = {}
        given = Given.make(self._replay.states, states.shape, self._replay.config.top_k_experts)
        for _, (_, sums) in self._called(layer, states, routed, None, note=given.note):
            add(total, sums)
        return total, given

    def _called(
        self,
        layer: Any,  # noqa: ANN401
        states: F32,
        routed: Routed | None,
        added: F32 | None,
        *,
        note: Callable[[int, Any], None] | None = None,
    ) -> Iterator[tuple[int, tuple[torch.Tensor, Sums]]]:
        """Yield the layer's output and the sums for each sequence, in order."""
        hooks = Hooks({f"layers.{self._number}.{path}": module for path, module in _first_to_take(layer)})
        arguments, shared = self._replay.arguments[self._number], Shared(self._replay, layer)
        per_layer, length = self._replay.per_layer(self._number), states.shape[1]

        def call(s: int) -> tuple[torch.Tensor, Sums]:
            with torch.no_grad():  # a setting of each thread
                hooks.begin()
                if routed is not None:
                    routed.begin(None if added is None else self._replay.sequence(added, s)[0])
                own = {} if per_layer is None else {"per_layer_input": self._replay.sequence(per_layer, s)}
                given = shared.given(s)
                # not `layer(...)`, whose hooks would take the weights out again
                found = layer.forward(self._replay.sequence(states, s), **own, shared_kv_states=given, **arguments)
                shared.keep(s, given)
                if note is not None and routed is not None:
                    note(s, routed.noted())
                return found, hooks.end(length)

        with hooks.placed():
            yield from in_order(self._pool, call, range(len(states)))


def _first_to_take(layer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield path and Linear once for each distinct input; skip the router, which is never packed."""
    for path, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear) and not path.startswith("router") and source_of(path) == path:
            yield path, module
