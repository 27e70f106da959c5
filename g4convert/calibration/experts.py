"""Quantizes the experts of a layer, each on the tokens that were routed to it.

All experts read the same normed states, so these are kept once. The H of an expert is formed at its turn, from the rows
of its tokens; the H of all experts at once would take gigabytes a layer.

    routing     by the unquantized router, on the states behind the quantized attention
    gate, up    one H for both: from the expert's rows, plus a prior that weighs as many tokens as there are columns
    down        on the output of the quantized gate and up for the same rows, plus a prior from tokens spread over the
                sequences and run through this expert
    output      expert after expert, times the router's weight, added up

Ranks take experts in turns, and do each alone. Rank 0 adds up their outputs, in the order of experts.

An expert with few or no tokens is quantized on the prior; damping counts its own tokens. An expert with fewer than 32
judging rows is judged on the rows of other tokens.

Letters: t tokens, h hidden size, e an expert, k experts of a token.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from g4convert.array_types import F32, I64
from g4convert.calibration.moments import Moments
from g4convert.calibration.rounding import dequantize
from g4convert.calibration.states import SCRATCH
from g4convert.calibration.work import LayerWork

_JUDGES = 32
_OUT = f"{SCRATCH}experts"


def run_experts(work: LayerWork, layer: Any, states: F32) -> F32:  # noqa: ANN401 -- a module of transformers
    """Quantize the experts of a layer, if the recipe packs them, and run them.

    Args:
        work: the layer, and what its experts are packed with.
        layer: the layer with its router and norms, without the experts' weights.
        states: states behind the attention, [samples, length, h].

    Returns:
        Output of the experts, [samples, length, h].
    """
    out = work.replay.states.make(_OUT, states.shape)
    experts = _Experts(work, layer, states.reshape(-1, states.shape[-1]))
    if work.weights.names.keys() & {"experts.0.gate_proj"}:
        experts.quantize(out.reshape(-1, out.shape[-1]))
    else:
        work.replay.fill_experts(work.number)
        for s in work.team.own(range(len(states))):
            rows = np.arange(s * states.shape[1], (s + 1) * states.shape[1])
            routed = (torch.from_numpy(one[rows]).to(work.replay.device) for one in (experts.index, experts.weights))
            out[s] = layer.experts(experts.inputs(rows), *routed).cpu().numpy()
    work.team.ranks.wait()
    return out


class _Experts:
    """The experts of one layer, and the tokens routed to each."""

    def __init__(self, work: LayerWork, layer: Any, states: F32) -> None:  # noqa: ANN401
        self._work, self._layer, self._states = work, layer, states
        length = work.replay.tokens.length
        device = work.replay.device
        routed = [layer.router(torch.from_numpy(rows).to(device)) for rows in _split(states, length)]
        self.weights: F32 = torch.cat([weights for _, weights, _ in routed]).cpu().numpy()
        self.index: I64 = torch.cat([index for *_, index in routed]).cpu().numpy()
        judges = np.isin(np.arange(work.replay.tokens.samples), [*work.replay.tokens.judges])
        self._judging: NDArray[np.bool_] = np.repeat(judges, length)

    def inputs(self, rows: I64) -> torch.Tensor:
        """Return the normed states of the tokens `rows`, [t, h]."""
        states = torch.from_numpy(self._states[rows]).to(self._work.replay.device)
        normed: torch.Tensor = self._layer.pre_feedforward_layernorm_2(states)
        return normed

    def quantize(self, out: F32) -> None:
        """Quantize each expert and add its output to `out` [t, h]."""
        training, judging = np.flatnonzero(~self._judging), np.flatnonzero(self._judging)
        whole = self._moments(training)
        sample, judges = _spread(training, len(whole.h)), _spread(judging, 512)
        count, ranks = self._work.replay.config.num_experts, self._work.team.ranks
        for first in range(0, count, ranks.world):
            mine = first + ranks.rank

            def one(expert: int = mine) -> tuple[list[Any], F32] | None:
                return self._one(expert, sample, judges, whole) if expert < count else None

            done = ranks.together(one)
            for expert, (notes, added) in enumerate(filter(None, done if ranks.leads else ()), first):
                token, place = self._routed(expert)
                out[token] += added * self.weights[token, place, None]
                for note in notes:
                    self._work.weights.note(note)

    def _one(self, expert: int, sample: I64, judges: I64, whole: Moments) -> tuple[list[Any], F32]:
        """Quantize an expert; return statistics of its weights, and its output for the tokens routed to it."""
        token, _ = self._routed(expert)
        seen = _Rows(self.inputs(token), self._judging[token], self.inputs(sample), self.inputs(judges))
        notes: list[Any] = []
        inner = self._gate_up(expert, seen, whole, notes)
        down = self._down(expert, inner, notes)
        return notes, (inner.rows @ down.T).cpu().numpy()

    def _routed(self, expert: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the tokens that an expert gets, and its place among each token's experts."""
        token, place = np.nonzero(self.index == expert)
        return token, place

    def _gate_up(self, expert: int, seen: "_Rows", whole: Moments, notes: list[Any]) -> "_Rows":
        """Quantize gate and up; return the inputs of down."""
        moments = seen.moments(self._work)
        k = len(moments.h)
        moments.blend(whole.h, k / max(whole.tokens, 1))
        paths = [f"experts.{expert}.gate_proj", f"experts.{expert}.up_proj"]
        gate, up = self._round(moments, seen, paths, notes)
        return seen.mapped(lambda x: self._layer.experts.act_fn(x @ gate.T) * (x @ up.T))

    def _down(self, expert: int, inner: "_Rows", notes: list[Any]) -> torch.Tensor:
        moments = inner.moments(self._work)
        prior = Moments(len(moments.h), self._work.team.alone, self._work.replay.device)
        prior.add(inner.sample)
        prior.finish()
        moments.blend(prior.h, len(prior.h) / max(prior.tokens, 1))
        (down,) = self._round(moments, inner, [f"experts.{expert}.down_proj"], notes)
        return down

    def _round(self, moments: Moments, seen: "_Rows", paths: list[str], notes: list[Any]) -> list[torch.Tensor]:
        work, rounding = self._work, self._work.rounding.alone
        factor, judges = rounding.factor(moments), seen.judging
        found = []
        for path in paths:
            rounded = rounding.round(work.weights.names[path], work.weights.read(path), moments, factor, judges)
            notes.append(work.weights.write(path, rounded))
            found.append(torch.from_numpy(dequantize(rounded.codes, rounded.scale)).to(work.replay.device))
        return found

    def _moments(self, rows: I64) -> Moments:
        """Return the moments of the tokens `rows`, as if all were routed to one expert."""
        moments = Moments(self._states.shape[1], self._work.team, self._work.replay.device)
        for some in np.array_split(rows, max(1, len(rows) // 4096)):
            moments.add(self.inputs(some))
        moments.finish()
        return moments


class _Rows:
    """Inputs of a Linear of one expert.

    Args:
        rows: rows of the tokens routed to the expert, [t, k], in token order.
        held: mask of the judging rows among them, bool [t].
        sample: rows of tokens spread over all sequences, for the prior.
        others: judging rows spread over all sequences, routed to any expert.
    """

    def __init__(self, rows: torch.Tensor, held: NDArray[np.bool_], sample: torch.Tensor, others: torch.Tensor) -> None:
        self.rows, self.held, self.sample, self.others = rows, held, sample, others

    def mapped(self, call: Any) -> "_Rows":  # noqa: ANN401
        """Apply `call` to all rows."""
        return _Rows(call(self.rows), self.held, call(self.sample), call(self.others))

    def moments(self, work: LayerWork) -> Moments:
        """Return the moments of the expert's rows that do not judge."""
        moments = Moments(self.rows.shape[1], work.team.alone, self.rows.device)
        moments.add(self.rows[self._at(~self.held)])
        moments.finish()
        return moments

    @property
    def judging(self) -> F32:
        """Judging rows of the expert, or `others` if there are fewer than 32."""
        own = self.rows[self._at(self.held)]
        judges: F32 = (own if len(own) >= _JUDGES else self.others).cpu().numpy()
        return judges

    def _at(self, mask: NDArray[np.bool_]) -> torch.Tensor:
        return torch.from_numpy(np.flatnonzero(mask)).to(self.rows.device)


def _split(states: F32, length: int) -> list[F32]:
    return [np.array(states[first : first + length]) for first in range(0, len(states), length)]


def _spread(rows: I64, count: int) -> I64:
    """Return `count` of the rows, spread evenly, or all rows if there are fewer."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
