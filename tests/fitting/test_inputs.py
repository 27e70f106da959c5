"""Rows that a fit runs: as many for whole choices as for single changes, none of them the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from g4convert.calibration.tokens import Tokens
from g4convert.errors import UsageError
from g4convert.fitting.inputs import choose_rows

FILE = Path("ids.safetensors")


def rows(count: int, length: int = 100) -> Tokens:
    """A file of some rows."""
    return Tokens(np.zeros((count, length), np.int32))


@pytest.mark.parametrize("count", [3, 4, 5, 9, 10, 17, 18, 128])
def test_whole_choices_are_judged_on_as_many_other_rows_and_on_two_at_least(count: int) -> None:
    tokens = rows(count)
    chosen, others, length = choose_rows(tokens, None, None, FILE)
    assert length == 64
    assert not {*chosen} & ({*others} | tokens.judges)
    assert len(chosen) == min(8, count // 2)
    assert len(others) == max(2, len(chosen))
    assert len({*chosen, *others}) == len(chosen) + len(others)


@pytest.mark.parametrize(
    ("samples", "length", "hint"),
    [
        (5, 64, "--rows 4 --tokens 64, or more and longer rows"),
        (0, 64, "--rows 1 --tokens 64, or"),
        (-3, 64, "--rows 1 --tokens 64, or"),
        (4, 1, "--rows 4 --tokens 2, or"),
        (4, 101, "--rows 4 --tokens 100, or"),
        (9, 0, "--rows 4 --tokens 2, or"),
    ],
)
def test_a_hint_is_what_works(samples: int, length: int, hint: str) -> None:
    with pytest.raises(
        UsageError, match=f"--rows {max(0, samples)} --tokens {length}: ids.safetensors has 9 "
    ) as caught:
        choose_rows(rows(9), samples, length, FILE)
    assert caught.value.hint.startswith(hint)
    said = re.match(r"--rows (\d+) --tokens (\d+)", caught.value.hint)
    assert said
    choose_rows(rows(9), int(said[1]), int(said[2]), FILE)


def test_a_file_too_small_for_both_halves_is_refused() -> None:
    for samples in (None, 1):
        with pytest.raises(UsageError, match="has 2 rows of text") as caught:
            choose_rows(rows(2), samples, None, FILE)
        assert caught.value.hint.startswith("more and longer rows: `g4convert calibrate")
