"""Search for the cause of a wrong packed weight: common accidents, tried on a few rows.

Each accident is undone, or the source of another weight is compared instead. The first try that brings the error back
below the limit names the cause. If none does, the weight comes from no source here or is damaged in another way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from g4convert.array_types import U8
from g4convert.names import Name
from g4convert.verification.weights.measured import PackedPair, RowTile, measure_tile, read_tile

_ROWS: Final = 16
_PARTNER: Final = {"gate_proj": "up_proj", "up_proj": "gate_proj", "k_proj": "v_proj", "v_proj": "k_proj"}


def guess(pair: PackedPair, pairs: Mapping[str, PackedPair], limit: float) -> str:
    """Return the likely cause of a weight's error in a few words; empty if no accident explains it.

    Args:
        pair: a weight whose error is too large.
        pairs: all packed weights by name; their sources are tried as the source of `pair`.
        limit: largest sound error, as a multiple of the error of plain rounding.
    """
    tile = read_tile(pair, 0, min(_ROWS, pair.source.shape[0]))
    for cause, other in (*_undo_accidents(tile), *_transpose(pair, tile), *_try_other_sources(pair, pairs, tile)):
        sums = measure_tile(other)
        if sums.relative_error <= limit * sums.plain_relative_error:
            return cause
    return ""


def _undo_accidents(tile: RowTile) -> Iterator[tuple[str, RowTile]]:
    """Yield the tile with each accident of scales or codes undone."""
    if not tile.zeros.size:
        yield "its scales have the wrong sign", replace(tile, scale=-tile.scale)
    for shift in (1, -1):
        zeros = np.roll(tile.zeros, shift, -1)
        yield "its scales are shifted by a group", replace(tile, scale=np.roll(tile.scale, shift, -1), zeros=zeros)
    stored = tile.words.view(np.uint8)
    in_word = tile.words.byteswap().view(np.uint8)
    if tile.num_bits == 4:
        yield "its codes lack the offset of 8", replace(tile, words=(stored ^ 0x88).view(np.int32))
        yield "its nibbles lie high first in each byte", replace(tile, words=_swap_nibbles(stored).view(np.int32))
        yield "its nibbles lie high first in each word", replace(tile, words=_swap_nibbles(in_word).view(np.int32))
    elif tile.num_bits == 8:
        yield "its codes lack the offset of 128", replace(tile, words=(stored ^ 0x80).view(np.int32))
        yield "its bytes lie high first in each word", replace(tile, words=in_word.view(np.int32))


def _swap_nibbles(stored: U8) -> U8:
    """Swap the nibbles of each byte."""
    swapped: U8 = (stored >> np.uint8(4)) | (stored << np.uint8(4))
    return swapped


def _transpose(pair: PackedPair, tile: RowTile) -> Iterator[tuple[str, RowTile]]:
    n, k = pair.source.shape
    if n == k:
        columns: Any = read_tile(pair, 0, n).source[:, : tile.source.shape[0]]
        yield "it is transposed", replace(tile, source=np.ascontiguousarray(columns.T))


def _try_other_sources(
    pair: PackedPair, pairs: Mapping[str, PackedPair], tile: RowTile
) -> Iterator[tuple[str, RowTile]]:
    """Yield the tile with the sources of other modules: gate for up, another expert, another layer."""
    name = Name(pair.name)
    partner = pairs.get(f"{name.owner}.{_PARTNER.get(name.last, '')}")
    alike = [other for other in pairs.values() if other is not pair and Name(other.name).kind == name.kind]
    # the nearest first: experts of the same layer before experts of other layers
    alike.sort(key=lambda other: -len(_common_prefix(pair.name, other.name)))
    for other in (*([partner] if partner else []), *alike):
        if other.source.shape == pair.source.shape:
            source = read_tile(other, 0, tile.source.shape[0]).source
            yield f"it is the weight of {other.name}", replace(tile, source=source)


def _common_prefix(name: str, other: str) -> str:
    """Return the common prefix of two names."""
    same = next((i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b), min(len(name), len(other)))
    return name[:same]
