"""Packs texts into rows, and keeps judging text apart from calibrating text.

    texts --longer than a row: cut--> pieces --whole--> judging | calibrating --> rows, each with one BOS

A text that fits into a row lies wholly on one side, and so do all answers to one question, so the calibrating side has
not seen what judges. Texts are taken in the given order; the first ones judge. Those with pictures come together in the
first rows of their side, so that few rows have pictures: what runs a decoder alone takes the others. The placeholders
of a picture are never parted: where a piece with pictures does not fit into what is left of a row, other texts fill it,
or words that the side has had already.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from g4convert.array_types import I32
from g4convert.calibration.tokens import judges
from g4convert.conversion.pictures import Patches, Pictures


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture in a text.

    Args:
        begin: place of its first id, which opens it.
        end: place behind its last id, which closes it.
        patches: the picture.
    """

    begin: int
    end: int
    patches: Patches


@dataclass(frozen=True, slots=True)
class Written:
    """A text as ids, without BOS.

    Args:
        kind: kind of text.
        ids: all ids of the text.
        whole: whether it is never cut, as the answers to one question.
        shown: its pictures, in order.
    """

    kind: str
    ids: tuple[int, ...]
    whole: bool = False
    shown: tuple[Shown, ...] = ()

    @property
    def words(self) -> tuple[int, ...]:
        """Ids that belong to no picture."""
        inside = {place for one in self.shown for place in range(one.begin, one.end)}
        return tuple(id_ for place, id_ in enumerate(self.ids) if place not in inside) if inside else self.ids

    def part(self, begin: int, end: int) -> "Written":
        """Return the ids from `begin` to `end`, with the pictures in them."""
        inside = (one for one in self.shown if begin <= one.begin and one.end <= end)
        moved = tuple(replace(one, begin=one.begin - begin, end=one.end - begin) for one in inside)
        return Written(self.kind, self.ids[begin:end], self.whole, moved)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows, and the ids of each kind in them.

    Args:
        ids: int32 [rows, length].
        kinds: number of ids by kind of text.
        pictures: pictures of the rows; None if there are none.
    """

    ids: I32
    kinds: Mapping[str, int]
    pictures: Pictures | None = None


@dataclass(slots=True)
class _Row:
    """A row that is being filled: ids with their kinds, and pictures."""

    ids: list[tuple[int, str]] = field(default_factory=list)
    pictures: list[Patches] = field(default_factory=list)

    def take(self, piece: Written) -> None:
        self.ids += [(id_, piece.kind) for id_ in piece.ids]
        self.pictures += [one.patches for one in piece.shown]


def pack(texts: Iterable[Written], rows: int, body: int, beginning: Sequence[int]) -> PackedRows:
    """Fill rows with texts.

    Args:
        texts: texts, in order; no picture has more ids than `body`.
        rows: most rows to fill.
        body: text ids of a row, BOS excluded.
        beginning: first ids of each row: BOS, or none for a vocabulary without BOS.

    Returns:
        As many rows as the texts fill; none if they fill fewer than two.
    """
    pieces = [*_cut(texts, body)]
    rows = min(rows, sum(len(one.ids) for one in pieces) // body)
    while rows >= 2:
        chosen = _fill(pieces, rows, body)
        if len(chosen) == rows:
            ids = np.array([[*beginning, *(id_ for id_, _ in row.ids)] for row in chosen], np.int32)
            kinds = Counter(kind for row in chosen for _, kind in row.ids)
            return PackedRows(ids, kinds, Pictures.of([row.pictures for row in chosen]))
        rows = min(rows - 1, len(chosen))
    return PackedRows(np.empty((0, len(beginning) + body), np.int32), {})


def _cut(texts: Iterable[Written], body: int) -> Iterator[Written]:
    """Cut texts that are longer than a row, except whole ones, and yield the pieces; none ends within a picture."""
    for one in texts:
        begin = 0
        while begin < len(one.ids):
            end = len(one.ids) if one.whole else min(begin + body, len(one.ids))
            end = next((shown.begin for shown in one.shown if shown.begin < end < shown.end), end)
            yield one.part(begin, end)
            begin = end


def _fill(pieces: Sequence[Written], rows: int, body: int) -> list[_Row]:
    """Fill at most `rows` rows, the judging rows at their places; fewer if a side has too few ids."""
    marked = judges(rows)
    judging: list[Written] = []
    calibrating: list[Written] = []
    enough = len(marked) * body
    for piece in pieces:
        (judging if enough > 0 else calibrating).append(piece)
        enough -= len(piece.ids)
    left = {True: _rows(judging, body), False: _rows(calibrating, body)}
    found = []
    for number in range(rows):
        row = next(left[number in marked], None)
        if row is not None:
            found.append(row)
    return found


def _rows(pieces: Sequence[Written], body: int) -> Iterator[_Row]:
    """Yield the rows that pieces fill, those with pictures first, else in order."""
    texts = deque(sorted(pieces, key=lambda piece: not piece.shown))
    said = [(id_, piece.kind) for piece in pieces if piece.shown for id_ in piece.words]
    row = _Row()
    while texts:
        room = body - len(row.ids)
        at = next((n for n, one in enumerate(texts) if not one.shown or len(one.ids) <= room), None)
        if at is None:  # only pictures are left, and none fits
            if len(said) < room:
                return
            row.ids += said[:room]
            said = said[room:] + said[:room]
        else:
            piece = texts[at]
            del texts[at]
            if len(piece.ids) > room:
                texts.insert(at, piece.part(room, len(piece.ids)))
                piece = piece.part(0, room)
            row.take(piece)
        if len(row.ids) == body:
            yield row
            row = _Row()
