"""`TorchTiles`: the arithmetic of `CpuTiles` in torch, for a GPU; the same bits.

Each operation is one elementwise torch kernel, correctly rounded, so there is no fused multiply-add; sums take
the order that `steps` documents; results that no order can change (largest, smallest, counts) are left to torch.

Layout: all groups of a tile at once, as `w` [r, m]: element i of m groups, r = g rounded up to a multiple of 8.
Memory: 5 times the tile in fp32, 8 with `lattice`. A GPU wants tiles of 16 M weights or more, not cache-sized ones.

A trap: torch on CUDA divides by a number by multiplying with its reciprocal, so divisors are tensors here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from g4convert.array_types import F32, I32, U16
from g4convert.quantization.arrays import check_outputs, check_rows, check_squares
from g4convert.quantization.imatrix import relative
from g4convert.quantization.scheme import (
    LARGEST_LEVEL,
    MARGIN,
    OFF_GRID,
    SLACK,
    WIDER,
    Method,
    NonFiniteError,
    Scheme,
    TileStats,
)
from g4convert.quantization.source import FORMATS, SourceFormat
from g4convert.tensors import DType

__all__ = ["TORCH_DTYPES", "TorchTiles"]

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.F16: torch.float16, DType.F32: torch.float32}
"""Torch dtypes of weights and scales."""

_EPS = 2.0**-23
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_RUN = 16  # sums of 8


class _Groups(NamedTuple):
    """Weights `w` fp32 [r, m] in groups of `g` elements; `peak` and `sign` [m] of each group, as in `Block`."""

    w: Tensor
    g: int
    peak: Tensor
    sign: Tensor
    source: SourceFormat


class _Chosen(NamedTuple):
    """Scales fp32 [m], and masks bool [m] of the groups on a grid and of the exact groups among them."""

    scale: Tensor
    lattice: Tensor
    exact: Tensor


class TorchTiles:
    """Quantizes tiles of rows on a torch device; see `Tiles` for the calls.

    Args:
        device: device that computes; a CPU gives the same bits, slower than `CpuTiles`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def quantize(  # noqa: PLR0913, PLR0917 -- a tile, what to make of it and where to put it
        self,
        rows: NDArray[Any],
        dtype: DType,
        scheme: Scheme,
        packed: I32,
        scale: U16,
        squares: F32 | None = None,
    ) -> TileStats:
        """Quantize `rows` [n, k] into `packed` and `scale`."""
        check_rows(rows, dtype)
        check_outputs(scheme, (rows.shape[0], rows.shape[1]), packed, scale)
        if rows.shape[0] == 0:
            return TileStats()
        groups = self._load(rows, dtype, scheme)
        if scheme.method is Method.IMATRIX:
            chosen = _imatrix(groups, scheme, self._weights(check_squares(squares, rows.shape[1]), groups))
        else:
            chosen = _METHODS[scheme.method](groups, scheme)
        u = groups.w / chosen.scale
        q = _nearest(u, scheme)
        packed[:] = _pack(q[: groups.g], scheme.num_bits).reshape(packed.shape).cpu().numpy()
        bits = chosen.scale.to(torch.bfloat16).view(torch.int16)
        scale[:] = bits.reshape(scale.shape).cpu().numpy().view(np.uint16)
        error, weight = _total(_square_sum(u - q), chosen.scale), _total(_square_sum(u), chosen.scale)
        q = q[: groups.g]
        return TileStats(
            weights=rows.size,
            groups=scale.size,
            squared_error=error,
            squared_weight=weight,
            zero_codes=int((q == 0).sum()),
            saturated_codes=int((q == scheme.code_max).sum() + (q == -scheme.code_max - 1).sum()),
            lattice_groups=int(chosen.lattice.sum()),
            exact_groups=int(chosen.exact.sum()),
        )

    def lattice_share(self, rows: NDArray[Any], dtype: DType, group_size: int | None) -> float:
        """Return the share of the groups of `rows` [n, k] that lie on a 4-bit grid."""
        check_rows(rows, dtype)
        scheme = Scheme(4, group_size, Method.LATTICE)
        if rows.shape[0] * scheme.groups(rows.shape[1]) == 0:
            return 0.0
        groups = self._load(rows, dtype, scheme)
        return int(_find_steps(groups, scheme).lattice.sum()) / groups.peak.numel()

    def _weights(self, squares: F32, groups: _Groups) -> Tensor:
        """Return weights of squared errors, fp32 [r, m]."""
        of = torch.from_numpy(relative(squares, groups.g)).to(self._device)
        padded = torch.nn.functional.pad(of, (0, -groups.g % 8)).t()
        return padded.repeat(1, groups.peak.numel() // of.shape[0])

    def _load(self, rows: NDArray[Any], dtype: DType, scheme: Scheme) -> _Groups:
        words = rows if rows.flags.writeable else rows.copy()  # torch warns of read-only memory
        g = scheme.group(rows.shape[1])
        flat = torch.from_numpy(words.view(np.float32 if dtype is DType.F32 else np.int16)).to(self._device)
        w = flat.view(TORCH_DTYPES[dtype]).float().reshape(-1, g)
        finite = torch.isfinite(w)
        if not bool(finite.all()):
            first = int((~finite).flatten().to(torch.uint8).argmax())
            raise NonFiniteError(*divmod(first, rows.shape[1]))
        w = torch.nn.functional.pad(w, (0, -g % 8)).t().contiguous()
        top, bottom = w.amax(0).clamp(min=0), (-w.amin(0)).clamp(min=0)
        return _Groups(
            w=w,
            g=g,
            peak=torch.maximum(top, bottom),
            sign=torch.where(bottom >= top, 1.0, -1.0),
            source=FORMATS[dtype],
        )


def _minmax(groups: _Groups, scheme: Scheme) -> _Chosen:
    scale = _round_bf16(groups.peak / torch.full_like(groups.peak, scheme.divisor))
    no = torch.zeros_like(scale, dtype=torch.bool)
    return _Chosen(torch.where(scale > 0, scale, _EPS), no, no)


def _mse(groups: _Groups, scheme: Scheme) -> _Chosen:
    """Do `search.search` for all groups at once."""
    base = _minmax(groups, scheme)
    units = _units(groups, scheme)
    best, relative = torch.zeros_like(units), torch.zeros_like(units)
    for number in scheme.levels(groups.g):
        level = torch.full_like(units, number)
        u = groups.w * (level * units)
        q = _nearest(u, scheme)
        t = u * q
        a, b = _sum(u.abs() * t), _sum(q.abs() * t)
        ratio = a / torch.where(b > 0, b, 1.0)
        gain = ratio * a / (level * level * level)
        relative = torch.where(gain > best, ratio / level, relative)
        best = torch.maximum(gain, best)
    found = relative * (groups.peak * groups.sign if scheme.signed else groups.peak)
    candidate = torch.where(best > 0, _round_bf16(found), base.scale)
    slack = groups.w.shape[0] * SLACK
    new = (_error(groups.w, candidate, scheme) + slack) * _squared(candidate)
    old = (_error(groups.w, base.scale, scheme) - slack) * _squared(base.scale)
    return base._replace(scale=torch.where(new < old * MARGIN, candidate, base.scale))


def _imatrix(groups: _Groups, scheme: Scheme, h: Tensor) -> _Chosen:
    """Do `imatrix.quantize_imatrix` for all groups at once; `h` [r, m]."""
    base = _minmax(groups, scheme)
    units = _units(groups, replace(scheme, signed=False))
    best, ratio = torch.zeros_like(units), base.scale
    for number in scheme.levels(groups.g):
        for level in (number, -number):
            q = _nearest(groups.w * (torch.full_like(units, level) * units), scheme)
            hq = h * q
            wq, qq = _sum(groups.w * hq), _sum(q * hq)
            tried = wq / torch.where(qq > 0, qq, 1.0)
            gain = (tried * units) * (wq * units)
            ratio = torch.where(gain > best, tried, ratio)
            best = torch.maximum(gain, best)
    near = _round_bf16(ratio)
    candidate = torch.where(near != 0, near, base.scale)
    slack = groups.w.shape[0] * SLACK
    new = (_error(groups.w, candidate, scheme, h) + slack) * _squared(candidate)
    old = (_error(groups.w, base.scale, scheme, h) - slack) * _squared(base.scale)
    return base._replace(scale=torch.where(new < old * MARGIN, candidate, base.scale))


def _lattice(groups: _Groups, scheme: Scheme) -> _Chosen:
    """Do `lattice.quantize_lattice` for all groups at once."""
    found = _find_steps(groups, scheme)
    if bool(found.lattice.all()):
        return found
    return found._replace(scale=torch.where(found.lattice, found.scale, _mse(groups, scheme).scale))


_METHODS: dict[Method, Callable[[_Groups, Scheme], _Chosen]] = {
    Method.MINMAX: _minmax,
    Method.MSE: _mse,
    Method.LATTICE: _lattice,
}


def _find_steps(groups: _Groups, scheme: Scheme) -> _Chosen:
    """Do `lattice._find_steps` for all groups at once."""
    units = _pick_level(groups, scheme)
    q = torch.round(groups.w * units)
    low, high = _interval(groups, q)
    on = (units != 0) & (low <= high * WIDER)
    middle = torch.where(on, (low + high) * 0.5, 1.0)
    near = _round_bf16(middle)
    ulp = torch.where(near <= middle, 1 << 16, -(1 << 16)).to(torch.int32)
    beyond = (near.view(torch.int32) + ulp).view(torch.float32)
    sign = torch.where(on, torch.where(units > 0, 1.0, -1.0), 0.0)
    fits, beyond_fits = _fits(groups, q, near * sign), _fits(groups, q, beyond * sign)
    step = torch.where(~fits & beyond_fits, beyond, near) * sign
    empty = groups.peak == 0
    return _Chosen(
        scale=torch.where(empty, _minmax(groups, scheme).scale, step),
        lattice=on | empty,
        exact=(on & (fits | beyond_fits)) | empty,
    )


def _pick_level(groups: _Groups, scheme: Scheme) -> Tensor:
    """Return the least level on the grid over the peak, or 0; fp32 [m], positive unless the level is 8."""
    units = _units(groups, scheme)
    least = torch.zeros_like(units)
    for level in range(LARGEST_LEVEL, 0, -1):
        u = groups.w * (units * level)
        off = (u - _nearest(u, scheme)).abs().amax(0)
        least = torch.where(off <= OFF_GRID, float(level), least)
    return least * torch.where(least == LARGEST_LEVEL, units, units.abs())


def _bounds(groups: _Groups, half: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest |value| * down that round to each weight."""
    bits = (groups.w.abs() * groups.source.down).view(torch.int32)
    most = half - ((bits >> groups.source.shift) & groups.source.odd)
    return (bits - most).view(torch.float32), (bits + most).view(torch.float32)


def _interval(groups: _Groups, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest step that give every weight of a group; fp32 [m]."""
    q = q.abs()
    below, above = _bounds(groups, max(groups.source.half, 1))
    ratio = torch.full_like(q, 1 / groups.source.down) / torch.where(q > 0, q, 1.0)
    least = torch.where(groups.w == 0, 0.0, torch.inf)
    low = torch.where(q > 0, below * ratio, least).amax(0)
    return low, torch.where(q > 0, above * ratio, torch.inf).amin(0)


def _fits(groups: _Groups, q: Tensor, step: Tensor) -> Tensor:
    """Mark groups in which step * q, rounded to the source's dtype, gives every weight; bool [m]."""
    value = (q * step).abs() * groups.source.down
    below, above = _bounds(groups, groups.source.half)
    return ~((value < below) | (value > above)).any(0)


def _units(groups: _Groups, scheme: Scheme) -> Tensor:
    """Return 1 / peak with the sign of the scale, or 0 where a search could overflow; fp32 [m]."""
    searched = (groups.peak >= _SMALLEST) & (groups.peak <= _LARGEST)
    unit = torch.where(searched, torch.ones_like(groups.peak) / groups.peak, 0.0)
    return unit * groups.sign if scheme.signed else unit


def _nearest(u: Tensor, scheme: Scheme) -> Tensor:
    return torch.round(u).clamp(-scheme.code_max - 1, scheme.code_max)


def _round_bf16(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).float()


def _squared(scale: Tensor) -> Tensor:
    return scale.double() * scale.double()


def _error(w: Tensor, scale: Tensor, scheme: Scheme, h: Tensor | None = None) -> Tensor:
    u = w * (torch.ones_like(scale) / scale)
    e = u - _nearest(u, scheme)
    return (_square_sum(e) if h is None else _sum(e * (h * e))).double()


def _square_sum(x: Tensor) -> Tensor:
    return _sum(x * x)


def _sum(x: Tensor) -> Tensor:
    """Sum [r, m] over r in the order of `steps`: trees of 8, runs of 16 trees, then the runs."""
    v = x.view(-1, 8, x.shape[1])
    eights = ((v[:, 0] + v[:, 1]) + (v[:, 2] + v[:, 3])) + ((v[:, 4] + v[:, 5]) + (v[:, 6] + v[:, 7]))
    if eights.shape[0] > _RUN:
        eights = torch.nn.functional.pad(eights, (0, 0, 0, -eights.shape[0] % _RUN))
        runs = _one_by_one(eights.view(-1, _RUN, x.shape[1]).transpose(0, 1))
        return _one_by_one(runs)
    return _one_by_one(eights)


def _one_by_one(x: Tensor) -> Tensor:
    total = x[0]
    for term in x[1:]:
        total = total + term
    return total


def _total(sums: Tensor, scale: Tensor) -> float:
    """Sum the groups' sums times the squared scale, one after the other, in fp64."""
    terms = (sums.double() * _squared(scale)).cpu().numpy()
    return float(np.add.accumulate(terms)[-1])


def _pack(q: Tensor, num_bits: int) -> Tensor:
    """Pack codes fp32 [g, m] into int32 words [m, ceil(g * num_bits / 32)], the first code lowest."""
    per_word = 32 // num_bits
    fields = q.to(torch.int32) + (1 << (num_bits - 1))
    fields = torch.nn.functional.pad(fields, (0, 0, 0, -q.shape[0] % per_word)).view(-1, per_word, q.shape[1])
    words = torch.zeros_like(fields[:, 0])
    for j in range(per_word):
        words |= fields[:, j] << (num_bits * j)
    return words.t().contiguous()
