"""Chooses the method for `method: auto`: `lattice` if a sample of the groups lies on a 4-bit grid, otherwise `mse`.

The sample depends only on the source: rows from the middle of Linears spread evenly over the plan. Tables and head are
sampled only if no other weight has 4 bits, but always get the chosen method: training seldom puts them on a grid, and
`lattice` rounds groups off the grid as `mse` does.
"""

import numpy as np

from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.reader import Reader
from g4convert.conversion.result import MethodChoice, OnGrid
from g4convert.errors import UsageError
from g4convert.gemma4 import TABLES, Role
from g4convert.planning.packings import LATTICE_BITS
from g4convert.planning.plan import Plan, Quantize
from g4convert.quantities import plural
from g4convert.quantization import Method, NonFiniteError
from g4convert.quantization.tiles import CpuTiles
from g4convert.tensors import DType

LATTICE_SHARE = 0.99
"""Smallest share of sampled groups on a lattice for which `auto` takes `lattice`."""

_MAX_SAMPLED_LINEARS = 32
_MAX_SAMPLED_ROWS = 8


def choose(plan: Plan, checkpoint: Checkpoint, reader: Reader) -> MethodChoice:
    """Return the recipe's method; for `auto`, the method chosen by a sample of the source.

    Raises:
        UsageError: the method is calibrated, which changes codes, the source lies on its training's grid, and the
            recipe does not say `qat: recalibrate`.
    """
    if plan.recipe.is_calibrated and plan.recipe.qat == "keep":
        _refuse_lattice(plan, checkpoint, reader)
    if plan.recipe.method != "auto":
        return MethodChoice(Method(plan.recipe.method.value), "as asked")
    if not plan.quantized:
        return MethodChoice(Method.MSE, "nothing is packed")
    if not _lattice_candidates(plan):
        why = f"source not searched for the grid of a QAT, as that has {LATTICE_BITS} bits"
        return MethodChoice(Method.MSE, why, OnGrid(0.0, 0, 0))
    on_grid = _sample(plan, checkpoint, reader)
    method = Method.LATTICE if on_grid.share >= LATTICE_SHARE else Method.MSE
    trained = "trained" if method is Method.LATTICE else "not trained"
    sample = f"a sample ({on_grid.sampled} of {on_grid.tensors} tensors)"
    if on_grid.sampled == on_grid.tensors:
        sample = plural(on_grid.tensors, "tensor")
    why = f"source {trained} for 4 bits (QAT): {on_grid.share:.1%} of groups in {sample} lie on a 4-bit grid"
    return MethodChoice(method, why, on_grid)


def _refuse_lattice(plan: Plan, checkpoint: Checkpoint, reader: Reader) -> None:
    if not _lattice_candidates(plan):
        return
    share = _sample(plan, checkpoint, reader).share
    if share >= LATTICE_SHARE:
        raise UsageError(
            f"method {plan.recipe.method}: {share:.1%} of the source lies on the grid of its quantization-aware "
            "training, and calibration would take it off",
            hint="-r qat-q4_0 keeps its codes; a recipe with `qat: recalibrate` calibrates all the same",
        )


def _sample(plan: Plan, checkpoint: Checkpoint, reader: Reader) -> OnGrid:
    """Return the sample of the groups of all Linears."""
    candidates = _lattice_candidates(plan)
    shares = [
        _lattice_share(step, checkpoint, reader)
        for step in candidates[:: max(1, len(candidates) // _MAX_SAMPLED_LINEARS)]
    ]
    return OnGrid(float(np.mean(shares)), len(shares), len(candidates))


def _lattice_candidates(plan: Plan) -> tuple[Quantize, ...]:
    """Return the 4-bit weights that may lie on a training's grid; tables and head only if there are no others."""
    four = tuple(step for step in plan.quantized if step.packing.num_bits == LATTICE_BITS)
    return tuple(step for step in four if step.weight.role not in {*TABLES, Role.LM_HEAD}) or four


def _lattice_share(step: Quantize, checkpoint: Checkpoint, reader: Reader) -> float:
    n, k = step.weight.shape
    rows = min(_MAX_SAMPLED_ROWS, n)
    stored = checkpoint.tensors[step.weight.segment.source]
    itemsize = step.weight.dtype.itemsize
    begin = stored.begin + step.weight.segment.begin + (n - rows) // 2 * k * itemsize
    words = np.empty((rows, k), np.float32 if step.weight.dtype is DType.F32 else np.uint16)
    reader.read_into(stored.file, begin, words.data.cast("B"))
    try:
        return CpuTiles().lattice_share(words, step.weight.dtype, step.packing.group_size)
    except NonFiniteError:
        return 0.0  # the run will raise this error with the first such index of the tensor
