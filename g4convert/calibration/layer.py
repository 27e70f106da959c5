"""Quantizes one decoder layer on the outputs of the quantized layers before it, in the order in which its Linears run.

Linears that share their inputs share one H. After each step the layer holds the quantized weights, so the next step,
and the next layer, get the inputs that an engine will compute. Where the original's states are given, the unquantized
layer runs on them first, and the inputs of its Linears are kept, for weights that aim at its outputs.

Letters: s sequences, t tokens of each, h hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.calibration.moments import Moments, crossed, evenly
from g4convert.calibration.replay import Replay
from g4convert.calibration.rounding import Aim, Rounded, Rounding, dequantized
from g4convert.calibration.states import SCRATCH
from g4convert.calibration.team import Team
from g4convert.calibration.walk import Inputs, Walk
from g4convert.quantization.factor import Factor
from g4convert.quantization.gptq import aim

ORIGINAL = "original-"
"""Part of the names of arrays that belong to the unquantized model."""
_SHARE = 0.5
"""Share of the way to the weight that gives the original's outputs; all of it would learn the rows of H."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a recipe packs in one layer, by path inside it (`self_attn.q_proj`, `experts.3.down_proj`).

    Args:
        names: full module name of each.
        read: reads the source's weight, float32 [n, k], by path.
        write: writes the rounded weight, and returns its statistics.
        note: takes the statistics of all weights, in rank 0.
    """

    names: Mapping[str, str]
    read: Callable[[str], F32]
    write: Callable[[str, Rounded], list[Any]]
    note: Callable[[list[Any]], None]


@dataclass(frozen=True, slots=True)
class LayerPass:
    """Quantization of one layer on all sequences.

    Args:
        replay: gives the layer and its arguments.
        number: number of the layer.
        weights: weights to pack.
        rounding: method that rounds them.
        team: ranks and threads that share the work.
    """

    replay: Replay
    number: int
    weights: Weights
    rounding: Rounding
    team: Team

    def run(self, states: F32, out: F32, original: tuple[F32, F32] | None = None) -> None:
        """Quantize the layer.

        Args:
            states: inputs of the layer, [s, t, h]; not changed.
            out: filled with the layer's output, [s, t, h].
            original: inputs and outputs of the unquantized layer, for weights that aim at its outputs; None to aim
                at those of the unquantized layer on `states`.
        """
        kept: dict[str, F32] = {}
        if original is not None:
            with torch.no_grad(), self.replay.layer(self.number) as layer:
                self._walk(partial(self._keep, kept), ORIGINAL).run(self, layer, *original)
        with torch.no_grad(), self.replay.layer(self.number, without=self.weights.names) as layer:
            self._walk(partial(self._quantize, kept)).run(self, layer, states, out)

    def _walk(self, meet: Callable[[Any, list[str], Inputs], None], of: str = "") -> Walk:
        return Walk(self.replay, self.number, self.team, meet, of)

    def _keep(self, kept: dict[str, F32], layer: Any, paths: list[str], inputs: Inputs) -> None:  # noqa: ANN401
        """Keep the inputs of Linears that will be packed."""
        paths = self._present(paths)
        if not paths:
            return
        tokens, k = self.replay.tokens, layer.get_submodule(paths[0]).in_features
        array = self.replay.states.make(f"{SCRATCH}{ORIGINAL}{paths[0]}", (tokens.samples, tokens.length, k))
        for s, one in self.team.shared(inputs, tokens.samples):
            array[s] = one[0].cpu().numpy()
        kept[paths[0]] = array

    def _quantize(self, kept: Mapping[str, F32], layer: Any, paths: list[str], inputs: Inputs) -> None:  # noqa: ANN401
        """Quantize Linears that share their inputs, and put their rounded weights into the layer."""
        paths = self._present(paths)
        if not paths:
            return
        judges, samples = self.replay.tokens.judges, self.replay.tokens.samples
        moments = Moments(layer.get_submodule(paths[0]).in_features, self.team, self.replay.device)
        for s, one in self.team.each(inputs, range(samples)):
            (moments.hold if s in judges else moments.add)(one[0])
        moments.finish()
        factor, held = self.rounding.factor(moments), moments.held
        aims = self._aims(kept[paths[0]], paths, inputs, factor) if kept else {}
        for path in paths:
            weight = self.weights.read(path)
            name = self.weights.names[path]
            rounded = self.rounding.round(name, weight, moments, factor, held, aims.pop(path, None))
            if self.team.ranks.leads:
                self.weights.note(self.weights.write(path, rounded))
            put = torch.from_numpy(dequantized(rounded.codes, rounded.scale)).to(self.replay.device)
            layer.get_submodule(path).weight = torch.nn.Parameter(put, requires_grad=False)

    def _aims(self, original: F32, paths: list[str], inputs: Inputs, factor: Factor | None) -> dict[str, Aim]:
        """Return what Linears that share their inputs aim at, by path; `original` are [s, t, k].

        The sum with the original's inputs is [k, k], for all of the Linears. A single one has fewer rows than columns
        and gigabytes of these, so its sum is that of its outputs, [n, k].
        """
        judges = self.replay.tokens.judges
        held = evenly([np.array(original[s]) for s in sorted(judges)])
        if factor is None:
            return {path: Aim(None, held) for path in paths}
        weights = {path: self.weights.read(path) for path in paths}
        device = self.replay.device
        single = torch.from_numpy(weights[paths[0]]).to(device) if len(paths) == 1 else None

        def pair(s: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = inputs(s)[0]
            off = self.replay.sequence(original, s)[0] - x
            return off if single is None else off @ single.T, x

        k = original.shape[-1]
        pairs = self.team.each(pair, (s for s in range(len(original)) if s not in judges))
        sums = crossed((both for _, both in pairs), k if single is None else len(single), k, self.team, device)
        for weight in weights.values():
            rows = self.team.rows(len(weight))  # `round` takes no others
            off = sums if single is None else sums[rows]
            aim(weight[rows], off, factor, _SHARE, self.team.pool, of_inputs=single is None)
        return {path: Aim(weight, held) for path, weight in weights.items()}

    def _present(self, paths: list[str]) -> list[str]:
        return [path for path in paths if path in self.weights.names]
