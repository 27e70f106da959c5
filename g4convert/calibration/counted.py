"""Runs one unquantized layer on all sequences, and adds up the squares of its Linears' inputs.

A layer with experts runs twice: first to record the experts' inputs, then with their output; see `counted_experts`.

Letters: s sequences, t tokens, h hidden size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from g4convert.array_types import F32
from g4convert.calibration.counted_experts import ExpertInputs, Routed, run_counted
from g4convert.calibration.replay import Replay
from g4convert.calibration.squares import Hooks, Sums, add
from g4convert.calibration.team import Team
from g4convert.calibration.walk import Shared
from g4convert.conversion.statistics import source_of


class Counted:
    """Statistics of one layer over all sequences.

    Args:
        replay: gives the layer and its arguments.
        number: number of the layer.
        team: ranks and threads that each take a sequence.
    """

    def __init__(self, replay: Replay, number: int, team: Team) -> None:
        self._replay, self._number, self._team = replay, number, team

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
                added, theirs = run_counted(self._replay, self._number, experts, given, self._team)
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

        def take(s: int, found: torch.Tensor) -> None:
            out[s] = found[0].cpu().numpy()

        return self._run(layer, states, routed, added, take)

    def _to_experts(self, layer: Any, states: F32, routed: Routed) -> tuple[Sums, ExpertInputs]:  # noqa: ANN401
        """Run the layer on each sequence; return the sums and the recorded inputs of the experts."""
        given = ExpertInputs.make(self._replay.states, states.shape, self._replay.config.top_k_experts)
        return self._run(layer, states, routed, None, lambda s, _: given.note(s, routed.noted())), given

    def _run(
        self,
        layer: Any,  # noqa: ANN401
        states: F32,
        routed: Routed | None,
        added: F32 | None,
        take: Callable[[int, torch.Tensor], None],
    ) -> Sums:
        """Run the layer on each sequence, give its output to `take`, and return the sums over all sequences."""
        hooks = Hooks({f"layers.{self._number}.{path}": module for path, module in _first_to_take(layer)})
        shared = Shared(self._replay, layer)
        per_layer, length = self._replay.per_layer(self._number), states.shape[1]

        def call(s: int) -> Sums:
            hooks.begin()
            if routed is not None:
                routed.begin(None if added is None else self._replay.sequence(added, s)[0])
            own = {} if per_layer is None else {"per_layer_input": self._replay.sequence(per_layer, s)}
            given, arguments = shared.given(s), self._replay.arguments_of(self._number, s)
            # not `layer(...)`, whose hooks would take the weights out again
            found = layer.forward(self._replay.sequence(states, s), **own, shared_kv_states=given, **arguments)
            shared.keep(s, given)
            take(s, found)
            return hooks.end(length)

        total: Sums = {}
        with hooks.placed():
            for _, sums in self._team.gathered(call, len(states)):
                add(total, sums)
        return total


def _first_to_take(layer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield path and Linear once for each distinct input; skip the router, which is never packed."""
    for path, module in layer.named_modules():
        if isinstance(module, torch.nn.Linear) and not path.startswith("router") and source_of(path) == path:
            yield path, module
