"""Weights after packing and unpacking, rounded in memory by the method of a recipe."""

from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch

from g4convert.array_types import F32
from g4convert.calibration.rounding import quantize_in_memory
from g4convert.conversion.result import MethodChoice
from g4convert.conversion.statistics import Statistics, source_of
from g4convert.engines.limits import Packing
from g4convert.fitting.standing import look_up_share
from g4convert.forward.modules import PackedWeight
from g4convert.gemma4 import Architecture, Weight
from g4convert.quantization import Method


@dataclass(frozen=True, slots=True)
class Rounder:
    """Rounding of single weights by the method of a recipe.

    Args:
        choice: the method; `imatrix` replaces `gptq` and `best`, which need whole layers, or `mse` does if there are no
            statistics.
        architecture: architecture of the model, which tells the decoder's weights from others.
        pool: threads that each take some rows.
        signed: whether `mse` may choose negative scales.
        statistics: statistics of the Linears' inputs, for `imatrix`; None if there are none.
    """

    choice: MethodChoice
    architecture: Architecture
    pool: Executor
    signed: bool = True
    statistics: Statistics | None = None

    @property
    def method(self) -> Method:
        """Method that rounds: `choice.method`, or its replacement for `gptq` and `best`."""
        if self.choice.method in {Method.GPTQ, Method.BEST}:
            return Method.MSE if self.statistics is None else Method.IMATRIX
        return self.choice.method

    @property
    def share(self) -> float:
        """Share of the chosen method in what parts of layers lose by `method`; 1 if that is the same."""
        return look_up_share(self.choice.method, self.method, experts=self.architecture.text.experts is not None)

    def round_weight(self, weight: Weight, values: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Round a weight, or some rows of it.

        Args:
            weight: the weight.
            values: some or all of its rows, [n, k], any dtype.
            packing: bits and group size.

        Returns:
            The rows after packing and unpacking, with the dtype and device of `values`.

        Raises:
            InputError: a value is NaN or infinite.
        """
        scheme = replace(self.choice, method=self.method).scheme(packing, signed=self.signed)
        squares = self.squares(weight) if scheme.method is Method.IMATRIX else None
        if scheme.method is Method.IMATRIX and squares is None:
            scheme = replace(scheme, method=Method.MSE)
        w = values.detach().cpu().float().contiguous().numpy()
        words, scales = map(torch.from_numpy, quantize_in_memory(weight.name, w, scheme, self.pool, squares))
        dense = PackedWeight(words, scales, None, w.shape[1], scheme.num_bits).dense(torch.float32)
        return dense.to(values.device, values.dtype)

    def squares(self, weight: Weight) -> F32 | None:
        """Return E[x^2] of a weight's inputs, float32 [k]; None without statistics, as outside the decoder's layers."""
        path = self.architecture.decoder_path(weight.module)
        if self.statistics is None or path is None or not weight.linear:
            return None
        return self.statistics.of(path) if source_of(path) in self.statistics.inputs else None
