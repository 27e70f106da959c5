"""Colours, widths and pipes: what a terminal gets, and what does not."""

from __future__ import annotations

import io
import os
import pty
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, g4convert
from rich.console import Console

from g4convert.cli.next_steps import show_next
from g4convert.cli.tables import break_command, print_prose

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


__all__ = ["g4convert"]


def on_terminal(commands: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Run the program several times on a terminal of 80 columns, in one process; each with its NO_COLOR."""
    code = (
        "import os; from g4convert.cli import app as cli\n"
        f"for colour, words in {[*commands]!r}:\n"
        "    os.environ['NO_COLOR'] = colour\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: print(chr(0), flush=True)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    text = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        text += block
    os.close(leader)
    assert process.wait() == 0
    return text.decode().split(chr(0))[:-1]


@pytest.mark.wide
def test_colour_only_on_a_terminal_and_only_if_wanted(moe: Path, g4convert: Program) -> None:
    assert "\x1b[" not in g4convert("plan", moe).out
    coloured = [("", ["recipe", "list"]), ("", ["plan", "nothing"])]
    plain = [("", ["recipe", "list", "--no-color"]), ("", ["plan", "nothing", "--no-color"]), ("1", ["recipe", "list"])]
    found = on_terminal([*coloured, *plain])
    assert ["\x1b[" in text for text in found] == [True] * len(coloured) + [False] * len(plain)


@pytest.mark.wide
def test_whoever_reads_may_leave(moe: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for command in (("plan", str(moe)), ("recipe", "schema")):
        ran = subprocess.run(
            [sys.executable, "-m", "g4convert", *command], check=False, stdout=write, stderr=subprocess.PIPE, text=True
        )
        assert (ran.returncode, ran.stderr) == (0, "")
    os.close(write)


def test_sentences_break_at_words_on_a_terminal_alone() -> None:
    told = {}
    for terminal in (True, False):
        file = io.StringIO()
        print_prose(
            Console(file=file, force_terminal=terminal, width=24, no_color=True),
            "[dim]a sentence[/] of words",
            indent=2,
        )
        print_prose(Console(file=file, force_terminal=terminal, width=24, no_color=True), "and \x1b[31m an escape")
        told[terminal] = file.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert told[True][:2] == ["  a sentence of words", "and \\x1b[31m an escape"]
    assert told[False][0] == "  a sentence of words"
    narrow = io.StringIO()
    print_prose(Console(file=narrow, force_terminal=True, width=12, no_color=True), "a sentence of words", indent=2)
    assert narrow.getvalue().splitlines() == ["  a sentence", "  of words"]


def test_a_next_command_stays_whole_on_a_narrow_terminal() -> None:
    for terminal, width, wanted in (
        (True, 20, "next: g4convert \\\n      plan x\n      # shows the\n      # sizes\n"),
        (True, 24, "next: g4convert plan x\n      # shows the sizes\n"),
        (True, 80, "next: g4convert plan x  # shows the sizes\n"),
        (False, 20, "next: g4convert plan x  # shows the sizes\n"),
    ):
        file = io.StringIO()
        show_next(Console(file=file, force_terminal=terminal, width=width), "g4convert plan x", "shows the sizes")
        assert file.getvalue() == wanted


def test_a_command_in_lines_is_the_same_command() -> None:
    command = "g4convert quantize 'my model' -o \"it's\" --pack attention --pack mlp"
    for width in (10, 30, 40, 200):
        lines = break_command("  in full: ", command, width)
        assert shlex.split(lines.removeprefix("  in full: ").replace("\\\n", "")) == shlex.split(command)
    assert break_command("next: ", command, 60).splitlines() == [
        "next: g4convert quantize 'my model' -o \"it's\" \\",
        "      --pack attention --pack mlp",
    ]
