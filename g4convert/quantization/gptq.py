"""GPTQ (https://arxiv.org/abs/2210.17323): rounds a weight by columns, and corrects later columns for the error.

    H^-1 = U^T U, see `factor`
    for column i:  q_i = clip(rint(w_i / s_i)),  e = (w_i - s_i q_i) / U_ii,  w_j -= e U_ij  for j > i

Scales are fixed before the loop, sign included: the loop sees `s q` alone, so negative scales change nothing in it.
Columns go in the order of falling H_ii. That is an order of work; codes and groups keep their places, so nothing
like a `g_idx` is stored.

Rows are independent. On a CPU they are done in tiles of a fixed size, each on one thread, so the result does not depend
on the number of threads. Within a tile, columns go in blocks: a compiled loop updates the block, one matrix product the
columns after it. On a GPU, where the factor lies, all rows go at once, by torch's operations.

Letters: n rows (out_features), k columns (in_features), b columns of a block.
"""

from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np
import torch

from g4convert.array_types import F32, I8
from g4convert.jit import jit
from g4convert.quantization.factor import Factor, blocks

_ROWS = 256


def aim(  # noqa: PLR0913 -- a weight, and where to
    w: F32, off: torch.Tensor, factor: Factor, share: float, pool: Executor, *, of_inputs: bool
) -> None:
    """Move a weight, in place, so that on the inputs of H it gives what it gave on the original's inputs.

        W + share W D (H + lambda I)^-1,  D = (X0 - X)^T X

    With `share` 1 this is the ridge regression of the original's outputs W X0 on X, drawn to W instead of 0.

    Args:
        w: W, [n, k].
        off: D, [k, k], or W D, [n, k], on the factor's device: X0 the original's inputs, X those of H.
        factor: the factor of H.
        share: share of the way.
        pool: threads that take a tile of rows each; torch has to run on one thread in them.
        of_inputs: whether `off` is D.
    """
    upper, order = factor.upper, factor.order

    def do(rows: slice) -> None:
        kept = torch.from_numpy(w[rows])
        tile = kept.to(upper.device)
        drift = tile @ off if of_inputs else off[rows]
        drift = drift[:, order].mul_(share / factor.mean)
        tile[:, order] += drift @ upper.mT @ upper
        kept.copy_(tile)

    for _ in pool.map(do, _tiles(w.shape[0])):
        pass


def nearest_codes(w: F32, scale: F32, code_max: int = 7) -> I8:
    """Round each weight to the nearest code.

    Args:
        w: [n, k].
        scale: [n, groups], not 0.
        code_max: the largest code.

    Returns:
        int8 [n, k].
    """
    n, groups = scale.shape
    codes = np.rint(w.reshape(n, groups, -1) / scale[:, :, None])
    np.clip(codes, -code_max - 1, code_max, out=codes)
    found: I8 = codes.reshape(w.shape).astype(np.int8)
    return found


def gptq(w: F32, scale: F32, factor: Factor, pool: Executor, code_max: int = 7) -> I8:
    """Round a weight so that the error of its product with the inputs of H is small.

    Args:
        w: [n, k].
        scale: [n, groups], not 0.
        factor: the factor of H.
        pool: threads that take a tile of rows each; torch has to run on one thread in them.
        code_max: the largest code.

    Returns:
        int8 [n, k], in the order of the columns of `w`.
    """
    if factor.upper.device.type != "cpu":
        return torch_gptq(w, scale, factor, code_max)
    group = w.shape[1] // scale.shape[1]
    order, upper = factor.order.numpy(), factor.upper.numpy()
    codes = np.empty(w.shape, np.int8)

    def do(rows: slice) -> None:
        ordered = np.ascontiguousarray(w[rows][:, order])
        each = np.ascontiguousarray(scale[rows][:, order // group])
        out = np.empty(ordered.shape, np.int8)
        _tile(ordered, each, upper, code_max, out)
        codes[rows][:, order] = out

    for _ in pool.map(do, _tiles(w.shape[0])):
        pass
    return codes


def torch_gptq(w: F32, scale: F32, factor: Factor, code_max: int = 7) -> I8:
    """Do what `gptq` does on the factor's device, all rows at once.

    Sums have another order than on a CPU, so codes near a tie may differ.

    Args:
        w: [n, k].
        scale: [n, groups], not 0.
        factor: the factor of H.
        code_max: the largest code.

    Returns:
        int8 [n, k], in the order of the columns of `w`.
    """
    u, order = factor.upper, factor.order
    group = w.shape[1] // scale.shape[1]
    rest = torch.from_numpy(w).to(u.device)[:, order].T.contiguous()  # [k, n]: a column of the weight is one run
    scales = torch.from_numpy(scale).to(u.device).T.contiguous()
    codes = torch.empty_like(rest, dtype=torch.int8)
    for begin, end in blocks(len(rest)):
        block, errors = rest[begin:end], torch.empty_like(rest[begin:end])
        each, inside = scales[order[begin:end] // group], u[begin:end, begin:end]
        diagonal = inside.diagonal()[:, None]
        for i in range(end - begin):
            q = (block[i] / each[i]).round_().clamp_(-code_max - 1, code_max)
            codes[begin + i] = q
            errors[i] = (block[i] - each[i] * q) / diagonal[i]
            block[i + 1 :].addr_(inside[i, i + 1 :], errors[i], alpha=-1)
        rest[end:].addmm_(u[begin:end, end:].T, errors, alpha=-1)
    found = torch.empty_like(codes)
    found[order] = codes
    result: I8 = found.T.contiguous().cpu().numpy()
    return result


def _tiles(n: int) -> Iterator[slice]:
    return (slice(first, first + _ROWS) for first in range(0, n, _ROWS))


def _tile(w: F32, scale: F32, upper: F32, code_max: int, codes: I8) -> None:
    """Round a tile of rows into `codes`; overwrites `w`."""
    rest, u = torch.from_numpy(w), torch.from_numpy(upper)
    for begin, end in blocks(w.shape[1]):
        block = np.ascontiguousarray(w[:, begin:end])
        errors = np.empty_like(block)
        scales, out = np.ascontiguousarray(scale[:, begin:end]), np.empty(block.shape, np.int8)
        inside = np.ascontiguousarray(upper[begin:end, begin:end])
        _columns(block, scales, inside, np.float32(code_max), out, errors)
        codes[:, begin:end] = out
        if end < w.shape[1]:
            rest[:, end:] -= torch.from_numpy(errors) @ u[begin:end, end:]


@jit
def _columns(  # noqa: PLR0913, PLR0917 -- what goes in and out of a compiled loop
    w: F32, scale: F32, upper: F32, high: np.float32, codes: I8, errors: F32
) -> None:
    """Round a block of columns, row by row; arrays are [n, b], U is [b, b]."""
    low = -high - np.float32(1)
    for r in range(w.shape[0]):
        row = w[r]
        for i in range(w.shape[1]):
            q = min(high, max(low, np.rint(row[i] / scale[r, i])))
            codes[r, i] = np.int8(q)
            e = (row[i] - scale[r, i] * q) / upper[i, i]
            errors[r, i] = e
            u = upper[i]
            for j in range(i + 1, w.shape[1]):
                row[j] -= e * u[j]
