"""Packs texts into rows, and keeps judging text apart from calibrating text.

    texts --longer than a row: cut--> pieces --whole--> judging | calibrating --> rows, each with one BOS

A text that fits into a row lies wholly on one side, and so do all answers to one question, so the calibrating side has
not seen what judges. Texts are taken in the given order; the first ones judge.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from g4convert.array_types import I32
from g4convert.calibration.tokens import judges


@dataclass(frozen=True, slots=True)
class Written:
    """A text as ids, without BOS.

    Args:
        kind: kind of text.
        ids: all ids of the text.
        whole: whether it is never cut, as the answers to one question.
    """

    kind: str
    ids: tuple[int, ...]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows, and the ids of each kind in them.

    Args:
        ids: int32 [rows, length].
        kinds: number of ids by kind of text.
    """

    ids: I32
    kinds: Mapping[str, int]


def pack(texts: Iterable[Written], rows: int, body: int, bos: int | None) -> Packed:
    """Fill rows with texts.

    Args:
        texts: texts, in order.
        rows: most rows to fill.
        body: text ids of a row, BOS excluded.
        bos: first id of each row; None for a vocabulary without BOS.

    Returns:
        As many rows as the texts fill; none if they fill fewer than two.
    """
    pieces = [*_cut(texts, body)]
    rows = min(rows, sum(len(one.ids) for one in pieces) // body)
    while rows >= 2:
        chosen = _filled(pieces, rows, body)
        if len(chosen) == rows:
            first = [] if bos is None else [bos]
            ids = np.array([[*first, *(id_ for id_, _ in row)] for row in chosen], np.int32)
            return Packed(ids, Counter(kind for row in chosen for _, kind in row))
        rows = min(rows - 1, len(chosen))
    return Packed(np.empty((0, body + (bos is not None)), np.int32), {})


def _cut(texts: Iterable[Written], body: int) -> Iterator[Written]:
    """Cut texts that are longer than a row, except whole ones, and yield the pieces."""
    for one in texts:
        step = len(one.ids) if one.whole else body
        for begin in range(0, len(one.ids), max(1, step)):
            yield Written(one.kind, one.ids[begin : begin + step], one.whole)


def _filled(pieces: Sequence[Written], rows: int, body: int) -> list[list[tuple[int, str]]]:
    """Fill at most `rows` rows, the judging rows at their places; fewer if a side has too few ids."""
    marked = judges(rows)
    judging: list[tuple[int, str]] = []
    calibrating: list[tuple[int, str]] = []
    for piece in pieces:
        side = judging if len(judging) < len(marked) * body else calibrating
        side += [(id_, piece.kind) for id_ in piece.ids]
    left = {True: _rows(judging, body), False: _rows(calibrating, body)}
    found = []
    for number in range(rows):
        row = next(left[number in marked], None)
        if row is not None:
            found.append(row)
    return found


def _rows(stream: Sequence[tuple[int, str]], body: int) -> Iterator[list[tuple[int, str]]]:
    for begin in range(0, len(stream) - body + 1, body):
        yield [*stream[begin : begin + body]]
