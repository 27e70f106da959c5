"""Quantizes one decoder layer on the outputs of the quantized layers before it, in the order in which its Linears run.

Linears that share their inputs share one H. After each step the layer holds the quantized weights, so the next step,
and the next layer, get the inputs that an engine will compute. Where the original's states are given, the unquantized
layer runs on them first, and the inputs of its Linears are kept, for weights that aim at its outputs.

Letters: s sequences, t tokens of each, h hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from g4convert.array_types import F32
from g4convert.calibration.moments import Moments, cross_products, evenly
from g4convert.calibration.rounding import Aim, dequantize
from g4convert.calibration.states import SCRATCH
from g4convert.calibration.walk import Inputs, Walk
from g4convert.calibration.work import LayerWork
from g4convert.quantization.factor import Factor
from g4convert.quantization.gptq import aim

ORIGINAL = "original-"
"""Part of the names of arrays that belong to the unquantized model."""
_SHARE = 0.5
"""Share of the way to the weight that gives the original's outputs; all of it would learn the rows of H."""


@dataclass(frozen=True, slots=True)
class LayerPass:
    """Quantization of one layer on all sequences.

    Args:
        work: the layer, what is packed in it, and how.
    """

    work: LayerWork

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
            with torch.no_grad(), self.work.replay.layer(self.work.number) as layer:
                Walk(self.work, partial(self._keep, kept), ORIGINAL).run(layer, *original)
        with torch.no_grad(), self.work.replay.layer(self.work.number, without=self.work.weights.names) as layer:
            Walk(self.work, partial(self._quantize, kept)).run(layer, states, out)

    def _keep(self, kept: dict[str, F32], layer: Any, paths: list[str], inputs: Inputs) -> None:  # noqa: ANN401
        """Keep the inputs of Linears that will be packed."""
        paths = self._present(paths)
        if not paths:
            return
        tokens, k = self.work.replay.tokens, layer.get_submodule(paths[0]).in_features
        array = self.work.replay.states.make(f"{SCRATCH}{ORIGINAL}{paths[0]}", (tokens.samples, tokens.length, k))
        for s, one in self.work.team.shared(inputs, tokens.samples):
            array[s] = one[0].cpu().numpy()
        kept[paths[0]] = array

    def _quantize(self, kept: Mapping[str, F32], layer: Any, paths: list[str], inputs: Inputs) -> None:  # noqa: ANN401
        """Quantize Linears that share their inputs, and put their rounded weights into the layer."""
        work, paths = self.work, self._present(paths)
        if not paths:
            return
        judges, samples = work.replay.tokens.judges, work.replay.tokens.samples
        moments = Moments(layer.get_submodule(paths[0]).in_features, work.team, work.replay.device)
        for s, one in work.team.each(inputs, range(samples)):
            (moments.hold if s in judges else moments.add)(one[0])
        moments.finish()
        factor, held = work.rounding.factor(moments), moments.held
        aims = self._aims(kept[paths[0]], paths, inputs, factor) if kept else {}
        for path in paths:
            weight = work.weights.read(path)
            name = work.weights.names[path]
            rounded = work.rounding.round(name, weight, moments, factor, held, aims.pop(path, None))
            if work.team.ranks.leads:
                work.weights.note(work.weights.write(path, rounded))
            put = torch.from_numpy(dequantize(rounded.codes, rounded.scale)).to(work.replay.device)
            layer.get_submodule(path).weight = torch.nn.Parameter(put, requires_grad=False)

    def _aims(self, original: F32, paths: list[str], inputs: Inputs, factor: Factor | None) -> dict[str, Aim]:
        """Return what Linears that share their inputs aim at, by path; `original` are [s, t, k].

        The sum with the original's inputs is [k, k], for all of the Linears. A single one has fewer rows than columns
        and gigabytes of these, so its sum is that of its outputs, [n, k].
        """
        work, device = self.work, self.work.replay.device
        judges = work.replay.tokens.judges
        held = evenly([np.array(original[s]) for s in sorted(judges)])
        if factor is None:
            return {path: Aim(None, held) for path in paths}
        weights = {path: work.weights.read(path) for path in paths}
        single = torch.from_numpy(weights[paths[0]]).to(device) if len(paths) == 1 else None

        def pair(s: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = inputs(s)[0]
            off = work.replay.sequence(original, s)[0] - x
            return off if single is None else off @ single.T, x

        k = original.shape[-1]
        pairs = work.team.each(pair, (s for s in range(len(original)) if s not in judges))
        sums = cross_products((both for _, both in pairs), k if single is None else len(single), k, work.team, device)
        for weight in weights.values():
            rows = work.team.rows(len(weight))  # `round` takes no others
            off = sums if single is None else sums[rows]
            aim(weight[rows], off, factor, _SHARE, work.team.pool, of_inputs=single is None)
        return {path: Aim(weight, held) for path, weight in weights.items()}

    def _present(self, paths: list[str]) -> list[str]:
        return [path for path in paths if path in self.work.weights.names]
