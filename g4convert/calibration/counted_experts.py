"""Runs the experts of an unquantized layer one by one, and adds up the squares of each expert's inputs.

    router --notes normed states, experts, weights--> files --rows of one expert--> gate, up, down --> added, in order

All experts read the same normed states, so these are kept once; the weights of an expert are read at its turn.

Letters: s sequences, t tokens, h hidden size, k experts of a token, e experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import local
from typing import Any

import numpy as np
import torch

from g4convert.array_types import F32, F64, I64
from g4convert.calibration.replay import Replay
from g4convert.calibration.squares import Sums, squares
from g4convert.calibration.states import SCRATCH, States
from g4convert.calibration.team import Team
from g4convert.forward.pieces import Rows, TensorFiles


class Routed(torch.nn.Module):
    """Replacement of a layer's experts: records their inputs, or returns their recorded output."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = local()

    def begin(self, gives: torch.Tensor | None) -> None:
        """Set the output [t, h] to return in this thread; None returns zeros."""
        self._thread.gives = gives

    def noted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this thread's recorded states [t, h], experts [t, k] and router weights [t, k]."""
        noted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._thread.noted
        return noted

    def forward(self, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Record the inputs and return the output that `begin` set, [t, h]."""
        self._thread.noted = states, index, weights
        gives: torch.Tensor | None = self._thread.gives
        return torch.zeros_like(states) if gives is None else gives


@dataclass(frozen=True, slots=True)
class ExpertInputs:
    """Inputs of a layer's experts for all sequences.

    Args:
        states: normed states, [s, t, h].
        index: expert numbers of each token, [s, t, k].
        weights: router weights of these experts, [s, t, k].
    """

    states: F32
    index: F32
    weights: F32

    @classmethod
    def make(cls, states: States, shape: tuple[int, ...], top_k: int) -> "ExpertInputs":
        """Make the arrays, in files."""
        of = (*shape[:2], top_k)
        return cls(
            states.make(f"{SCRATCH}experts-states", shape),
            states.make(f"{SCRATCH}experts-index", of),
            states.make(f"{SCRATCH}experts-weights", of),
        )

    def note(self, s: int, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        """Store the inputs of sequence `s`: states, index, weights."""
        self.states[s], self.index[s], self.weights[s] = (one.cpu().numpy() for one in given)


def run_counted(
    replay: Replay,
    number: int,
    experts: Any,  # noqa: ANN401 -- a module of transformers
    given: ExpertInputs,
    team: Team,
) -> tuple[F32, Sums]:
    """Run the experts of a layer.

    Args:
        replay: reads the experts' weights.
        number: number of the layer.
        experts: the layer's module, used for its activation only.
        given: inputs of the experts.
        team: ranks and threads that each take an expert.

    Returns:
        Output of the experts [s, t, h], and the sums of squares of their inputs.
    """
    path = f"layers.{number}.experts."
    added = replay.states.make(f"{SCRATCH}experts-added", given.states.shape)
    flat, states, index, weights = (_flat(one) for one in (added, given.states, given.index, given.weights))
    read = _reader(replay, number)
    gate: list[F64] = []
    down: list[F64] = []
    tokens: list[int] = []

    def call(expert: int) -> tuple[I64, F32, F64, F64]:
        token, place = np.nonzero(index == expert)
        x = torch.from_numpy(states[token]).to(replay.device)
        gate_up, out = (read(name, expert).to(replay.device) for name in ("gate_up_proj", "down_proj"))
        first, second = (x @ gate_up.T).chunk(2, dim=-1)
        inner = experts.act_fn(first) * second
        gives = (inner @ out.T).cpu().numpy() * weights[token, place, None]
        return token, gives, squares(x), squares(inner)

    for _, (token, gives, outer, inner) in team.gathered(call, replay.config.num_experts, ahead=1):
        if team.ranks.leads:
            flat[token] += gives
        gate.append(outer)
        down.append(inner)
        tokens.append(len(token))
    team.ranks.wait()
    each = np.array(tokens)
    return added, {f"{path}gate_proj": (np.stack(gate), each), f"{path}down_proj": (np.stack(down), each)}


def _reader(replay: Replay, number: int) -> Callable[[str, int], torch.Tensor]:
    """Return a function that reads one expert's weight, float32, by name and expert number."""
    filling = replay.stream.filling
    prefix = next(
        name.removesuffix("gate_up_proj")
        for name in filling.pieces
        if name.endswith(f"layers.{number}.experts.gate_up_proj")
    )
    files = TensorFiles(filling.checkpoint)

    def read(name: str, expert: int) -> torch.Tensor:
        piece = filling.pieces[prefix + name]
        if isinstance(piece, Rows):
            return piece.part(files, expert, torch.float32)
        return piece.read(files, torch.float32)[expert]

    return read


def _flat(array: F32) -> F32:
    return array.reshape(-1, array.shape[-1])
