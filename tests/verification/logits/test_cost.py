"""The line that says what a comparison will cost; it has a time only where that is minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from g4convert.verification.logits import cost
from g4convert.verification.logits.cost import ComparisonCost

if TYPE_CHECKING:
    import pytest


def test_the_time_is_told_where_it_is_long() -> None:
    line = ComparisonCost(1e17, 2_000_000_000, 8, 1200).line("bundled")
    assert line.startswith("8 bundled prompts (--prompts takes yours): 1,200 predictions, about 2 GB of memory, about ")


def test_whose_prompts_they_are() -> None:
    own = ComparisonCost(1, 1000, 8, 12, media=6).line("own")
    assert own.startswith("2 own prompts and 6 bundled with pictures or sounds: 12 predictions, ")
    assert ComparisonCost(1, 1000, 1, 12).line("own").startswith("1 own prompt: 12 predictions, ")
    assert ComparisonCost(1, 1000, 8, 12, media=6).line("stored").startswith("8 stored prompts: ")
    assert (
        ComparisonCost(1, 1000, 8, 12, media=6)
        .line("bundled")
        .startswith("8 bundled prompts (--prompts takes yours): ")
    )


def test_the_speed_of_the_machine_is_measured_only_where_it_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[float]()
    monkeypatch.setattr(cost, "_measure_speed", lambda: measured.append(2e9) or measured[-1])
    assert ComparisonCost(2.9e11, 1000, 8, 12).line("own").endswith("of memory")
    assert not measured
    assert ComparisonCost(3.1e11, 1000, 8, 12).line("own").endswith("of memory")
    assert ComparisonCost(6.1e11, 1000, 8, 12).line("own").endswith("of memory, about 5 min")
    assert len(measured) == 2
