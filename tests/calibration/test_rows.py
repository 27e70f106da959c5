"""Rows of texts: one BOS each, and what judges is not known from what calibrates."""

from __future__ import annotations

import pytest

from g4convert.calibration.rows import Written, pack
from g4convert.calibration.tokens import judges

BOS = 1


def texts(count: int, size: int) -> list[Written]:
    """Texts whose ids are their own number."""
    return [Written("ab"[number % 2], (number,) * size) for number in range(2, count + 2)]


def sides(given: list[Written], rows: int, body: int) -> tuple[set[int], set[int]]:
    """Ids of the rows that judge, and of the others."""
    packed = pack(given, rows, body, [BOS])
    assert packed.ids.shape == (rows, body + 1)
    assert (packed.ids[:, 0] == BOS).all()
    assert sum(packed.kinds.values()) == rows * body
    marked = judges(rows)
    parts = ([number for number in range(rows) if (number in marked) is side] for side in (True, False))
    judging, calibrating = ({*packed.ids[part, 1:].flatten().tolist()} for part in parts)
    return judging, calibrating


@pytest.mark.parametrize("rows", [2, 4, 20, 40])
def test_no_text_that_fits_a_row_is_on_both_sides(rows: int) -> None:
    judging, calibrating = sides(texts(70, 11), rows, 15)
    assert judging
    assert not judging & calibrating


def test_answers_to_one_question_stay_together_however_long() -> None:
    given = [Written("a", (number,) * 50, whole=True) for number in range(2, 10)]
    judging, calibrating = sides(given, 10, 16)
    assert judging == {2}
    assert not judging & calibrating


def test_one_long_text_is_cut_and_no_token_is_there_twice() -> None:
    packed = pack([Written("a", tuple(range(2, 1002)))], 1000, 10, [])
    assert packed.ids.shape == (100, 10)
    assert sorted(packed.ids.flatten().tolist()) == list(range(2, 1002))


def test_rows_are_as_many_as_the_texts_fill() -> None:
    assert len(pack(texts(4, 7), 128, 8, [BOS]).ids) == 2, "28 ids are 3 rows, less what the sides leave over"
    assert len(pack(texts(1, 10), 128, 8, [BOS]).ids) == 0
    assert len(pack([], 128, 8, [BOS]).ids) == 0
