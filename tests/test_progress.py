"""Progress: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from g4convert.progress import Bar, Lines, Progress, open_display

if TYPE_CHECKING:
    from collections.abc import Callable


def drive(progress: Progress, *, done: int = 0) -> None:
    with progress:
        progress.start(3_000_000_000, done)
        progress.advance(1_000_000_000, "model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("make", [Lines, Bar])
def test_progress_says_what_is_done(make: Callable[[Console], Progress], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    drive(make(console), done=1_000_000_000)
    text = console.export_text()
    assert "continuing: 1.00 GB of 3.00 GB were finished by an earlier run" in text
    assert "/s" in text or make is Bar  # which needs a second step for a speed
    assert "model.layers.0.self_attn.q_proj.weight" in text
    assert max(map(len, text.splitlines())) <= 120


def test_no_time_is_foretold_from_the_first_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), width=100, record=True)
    with Lines(console) as progress:
        progress.start(1000, 0)
        progress.advance(10, "first")
        progress.advance(490, "second")
    first, second = console.export_text().splitlines()
    assert "left" not in first
    assert "left" in second


@pytest.mark.parametrize("make", [Lines, Bar])
def test_progress_within_a_step(make: Callable[[Console], Progress], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with make(console) as progress:
        progress.step("comparing", 2_680, "predictions")
        progress.tick(670)
        progress.step("running: original", 2_727, "tokens")
        progress.tick(2_727)
    text = console.export_text()
    assert "predictions" in text
    assert "left" in text or make is Bar


def test_before_it_knows_how_much_there_is_a_bar_shows_the_time_and_no_bytes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Bar(console):
        pass
    text = console.export_text()
    assert "opening 0:00:00" in text
    assert "bytes" not in text


def test_a_speed_is_shown_when_it_means_something() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with Bar(console) as progress:
        progress.start(10**12, 0)
        progress.advance(10**9, "first")  # in no time: terabytes a second
        begun = console.export_text()
        progress.advance(10**11, "next")
    assert "B/s" not in begun
    assert "GB/s" in console.export_text()


def test_eighty_columns_hold_the_time_left_of_a_step() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with Bar(console) as progress:
        progress.step("running: the dequantized weights", 2_727, "tokens")
        progress.tick(414)
    text = console.export_text()
    assert "414 of 2727 tokens" in text
    assert "running: the dequantized weights" in text
    assert "…" not in text


def test_no_bar_stands_full_between_steps() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    with Bar(console) as progress:
        progress.step("running", 10, "")
        progress.tick(10)
        progress.wait()
        console.export_text(clear=True)
    assert re.fullmatch(r"\W*0:00:00\W*", console.export_text())


def test_a_step_without_a_unit_is_told_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr("g4convert.progress._LINE_SECONDS", 0.0)
    with Lines(console) as progress:
        progress.step("running the original", 2_727, "")
        progress.tick(682)
    assert re.fullmatch(r"  running the original: 25%, \d+ s left\n", console.file.getvalue())


def test_progress_suits_where_it_goes() -> None:
    nowhere = io.StringIO()
    assert type(open_display(Console(file=nowhere), quiet=True)) is Progress
    assert type(open_display(Console(file=nowhere), quiet=False)) is Lines
    assert (
        type(open_display(Console(file=nowhere, force_terminal=True, _environ={"TERM": "xterm"}), quiet=False)) is Bar
    )
    assert (
        type(open_display(Console(file=nowhere, force_terminal=True, _environ={"TERM": "dumb"}), quiet=False)) is Lines
    )
