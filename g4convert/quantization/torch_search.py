"""Scales of all groups of a tile at once in torch, for `TorchTiles`: the arithmetic of `steps` and of each method.

Each operation is one elementwise torch kernel, correctly rounded, so there is no fused multiply-add; sums take
the order that `steps` documents; results that no order can change (largest, smallest, counts) are left to torch.

Layout: the groups of a tile as `w` [r, m]: element i of m groups, r = g rounded up to a multiple of 8.

A trap: torch on CUDA divides by a number by multiplying with its reciprocal, so divisors are tensors here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from g4convert.quantization.scheme import (
    LARGEST_LEVEL,
    MARGIN,
    OFF_GRID,
    SLACK,
    WIDER,
    Method,
    Scheme,
)
from g4convert.quantization.source import SourceFormat

_EPS = 2.0**-23
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_RUN = 16  # sums of 8


class Groups(NamedTuple):
    """Weights `w` fp32 [r, m] in groups of `g` elements; `peak` and `sign` [m] of each group, as in `Block`."""

    w: Tensor
    g: int
    peak: Tensor
    sign: Tensor
    source: SourceFormat


class Chosen(NamedTuple):
    """Scales fp32 [m], and masks bool [m] of the groups on a grid and of the exact groups among them."""

    scale: Tensor
    lattice: Tensor
    exact: Tensor


def _minmax(groups: Groups, scheme: Scheme) -> Chosen:
    scale = _round_bf16(groups.peak / torch.full_like(groups.peak, scheme.divisor))
    no = torch.zeros_like(scale, dtype=torch.bool)
    return Chosen(torch.where(scale > 0, scale, _EPS), no, no)


def _mse(groups: Groups, scheme: Scheme) -> Chosen:
    """Do `search.search` for all groups at once."""
    base = _minmax(groups, scheme)
    units = _units(groups, scheme)
    best, relative = torch.zeros_like(units), torch.zeros_like(units)
    for number in scheme.levels(groups.g):
        level = torch.full_like(units, number)
        u = groups.w * (level * units)
        q = nearest(u, scheme)
        t = u * q
        a, b = _sum(u.abs() * t), _sum(q.abs() * t)
        ratio = a / torch.where(b > 0, b, 1.0)
        gain = ratio * a / (level * level * level)
        relative = torch.where(gain > best, ratio / level, relative)
        best = torch.maximum(gain, best)
    found = relative * (groups.peak * groups.sign if scheme.signed else groups.peak)
    candidate = torch.where(best > 0, _round_bf16(found), base.scale)
    slack = groups.w.shape[0] * SLACK
    new = (_error(groups.w, candidate, scheme) + slack) * squared(candidate)
    old = (_error(groups.w, base.scale, scheme) - slack) * squared(base.scale)
    return base._replace(scale=torch.where(new < old * MARGIN, candidate, base.scale))


def imatrix(groups: Groups, scheme: Scheme, h: Tensor) -> Chosen:
    """Do `imatrix.quantize_imatrix` for all groups at once; `h` [r, m]."""
    base = _minmax(groups, scheme)
    units = _units(groups, replace(scheme, signed=False))
    best, ratio = torch.zeros_like(units), base.scale
    for number in scheme.levels(groups.g):
        for level in (number, -number):
            q = nearest(groups.w * (torch.full_like(units, level) * units), scheme)
            hq = h * q
            wq, qq = _sum(groups.w * hq), _sum(q * hq)
            tried = wq / torch.where(qq > 0, qq, 1.0)
            gain = (tried * units) * (wq * units)
            ratio = torch.where(gain > best, tried, ratio)
            best = torch.maximum(gain, best)
    near = _round_bf16(ratio)
    candidate = torch.where(near != 0, near, base.scale)
    slack = groups.w.shape[0] * SLACK
    new = (_error(groups.w, candidate, scheme, h) + slack) * squared(candidate)
    old = (_error(groups.w, base.scale, scheme, h) - slack) * squared(base.scale)
    return base._replace(scale=torch.where(new < old * MARGIN, candidate, base.scale))


def _lattice(groups: Groups, scheme: Scheme) -> Chosen:
    """Do `lattice.quantize_lattice` for all groups at once."""
    found = find_steps(groups, scheme)
    if bool(found.lattice.all()):
        return found
    return found._replace(scale=torch.where(found.lattice, found.scale, _mse(groups, scheme).scale))


METHODS: dict[Method, Callable[[Groups, Scheme], Chosen]] = {
    Method.MINMAX: _minmax,
    Method.MSE: _mse,
    Method.LATTICE: _lattice,
}


def find_steps(groups: Groups, scheme: Scheme) -> Chosen:
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
    return Chosen(
        scale=torch.where(empty, _minmax(groups, scheme).scale, step),
        lattice=on | empty,
        exact=(on & (fits | beyond_fits)) | empty,
    )


def _pick_level(groups: Groups, scheme: Scheme) -> Tensor:
    """Return the least level on the grid over the peak, or 0; fp32 [m], positive unless the level is 8."""
    units = _units(groups, scheme)
    least = torch.zeros_like(units)
    for level in range(LARGEST_LEVEL, 0, -1):
        u = groups.w * (units * level)
        off = (u - nearest(u, scheme)).abs().amax(0)
        least = torch.where(off <= OFF_GRID, float(level), least)
    return least * torch.where(least == LARGEST_LEVEL, units, units.abs())


def _bounds(groups: Groups, half: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest |value| * down that round to each weight."""
    bits = (groups.w.abs() * groups.source.down).view(torch.int32)
    most = half - ((bits >> groups.source.shift) & groups.source.odd)
    return (bits - most).view(torch.float32), (bits + most).view(torch.float32)


def _interval(groups: Groups, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest step that give every weight of a group; fp32 [m]."""
    q = q.abs()
    below, above = _bounds(groups, max(groups.source.half, 1))
    ratio = torch.full_like(q, 1 / groups.source.down) / torch.where(q > 0, q, 1.0)
    least = torch.where(groups.w == 0, 0.0, torch.inf)
    low = torch.where(q > 0, below * ratio, least).amax(0)
    return low, torch.where(q > 0, above * ratio, torch.inf).amin(0)


def _fits(groups: Groups, q: Tensor, step: Tensor) -> Tensor:
    """Mark groups in which step * q, rounded to the source's dtype, gives every weight; bool [m]."""
    value = (q * step).abs() * groups.source.down
    below, above = _bounds(groups, groups.source.half)
    return ~((value < below) | (value > above)).any(0)


def _units(groups: Groups, scheme: Scheme) -> Tensor:
    """Return 1 / peak with the sign of the scale, or 0 where a search could overflow; fp32 [m]."""
    searched = (groups.peak >= _SMALLEST) & (groups.peak <= _LARGEST)
    unit = torch.where(searched, torch.ones_like(groups.peak) / groups.peak, 0.0)
    return unit * groups.sign if scheme.signed else unit


def nearest(u: Tensor, scheme: Scheme) -> Tensor:
    """Return the codes nearest to `u`, weights divided by their scale; fp32, of any shape."""
    return torch.round(u).clamp(-scheme.code_max - 1, scheme.code_max)


def _round_bf16(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16).float()


def squared(scale: Tensor) -> Tensor:
    """Return the squares of scales in fp64."""
    return scale.double() * scale.double()


def _error(w: Tensor, scale: Tensor, scheme: Scheme, h: Tensor | None = None) -> Tensor:
    u = w * (torch.ones_like(scale) / scale)
    e = u - nearest(u, scheme)
    return (square_sum(e) if h is None else _sum(e * (h * e))).double()


def square_sum(x: Tensor) -> Tensor:
    """Sum the squares of `x` [r, m] over r, in the order of `steps`; fp32 [m]."""
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
