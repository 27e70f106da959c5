"""Targets of a fit: one spelling for a size, whatever was typed, and bits of what is decided on alone."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.headers import planned
from helpers.released_configs import FAMILIES

from g4convert.errors import UsageError
from g4convert.fitting.choices import DEFAULT_CHOICES, parse_choices
from g4convert.fitting.problem import Problem
from g4convert.fitting.target import Bits, Size, parse_target
from g4convert.quantities import exact_size, parse_size


@pytest.mark.parametrize("typed", ["14GB", "14 GB", "14gb\n", "\t14000MB", "14000000000"])
def test_a_size_has_one_spelling(typed: str) -> None:
    target = parse_target(typed, None, None)
    assert (target, target.text) == (Size(14 * 10**9), "--target-size 14GB")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(10, "10"), (1000, "1KB"), (1_600_000, "1.6MB"), (1_234_560, "1234.56KB"), (1_234_567, "1234567"), (2**40, None)],
)
def test_a_size_is_spelled_exactly(nbytes: int, text: str | None) -> None:
    assert exact_size(nbytes) == (text or str(nbytes))
    assert parse_size(exact_size(nbytes)) == nbytes


def test_what_is_no_size_is_told_the_units() -> None:
    for wrong in ("100TB", "0", "0.0GB", "14 bananas"):
        with pytest.raises(UsageError, match=f"--target-size {wrong}: expected .* GB, KiB"):
            parse_target(wrong, None, None)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": {"lm_head": 8}},
        {"bits": {"embedding": 8}},
        {"bits": {"lm_head": 8}, "rules": [{"role": "embedding", "bits": 4}]},
        {"bits": {"embedding": 8}, "rules": [{"role": "lm_head", "bits": 8}]},
    ],
)
def test_bits_are_of_what_is_decided_on_alone(options: dict[str, Any]) -> None:
    """A tied pair has one member that is fixed: its bytes are no bits of the other."""
    found = Problem.of(planned(FAMILIES["31B"], "w4a16-g32", **options), parse_choices(DEFAULT_CHOICES))
    uniform = dict(found.assign_uniformly())
    assert found.bits(found.nbytes(uniform["all int4 g32"])) == pytest.approx(4.5)
    assert found.bits(found.nbytes(uniform["all int4 g128"])) == pytest.approx(4.125)
    assert Bits(4.5).bytes_of(found) == pytest.approx(found.nbytes(uniform["all int4 g32"]), abs=1)
