"""Help, options and names of the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer.core
import typer.main
from helpers import TESTS, golden
from helpers.program import Program, g4convert

from g4convert import __version__
from g4convert.cli import app as cli
from g4convert.planning.rules import PackRole

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["g4convert"]


COMMANDS = (
    "plan",
    "quantize",
    "calibrate",
    "fit",
    "verify",
    "check",
    "reference",
    "generate",
    "inspect",
    "demo",
    "recipe",
)
LEAVES = [(), *((name,) for name in COMMANDS), *(("recipe", name) for name in ("list", "show", "check", "schema"))]


@pytest.mark.golden
@pytest.mark.parametrize("command", LEAVES, ids=lambda words: "-".join(words) or "g4convert")
def test_help(command: tuple[str, ...], g4convert: Program) -> None:
    ran = g4convert(*command, "--help")
    assert (ran.status, ran.err) == (0, "")
    text = "\n".join(line.rstrip() for line in ran.out.strip("\n").splitlines()) + "\n"
    golden.check(f"help/{'-'.join(('g4convert', *command))}.txt", text)
    if command not in {(), ("recipe",)}:
        assert "Example: g4convert" in text


def test_flags_have_no_type_in_the_help(g4convert: Program) -> None:
    for command in ((), ("verify",), ("recipe",), ("recipe", "show")):
        assert "<bool>" not in g4convert(*command, "--help").out


def test_no_arguments_print_the_help(g4convert: Program) -> None:
    for command in ((), ("recipe",)):
        ran = g4convert(*command)
        assert ran.status == 2
        assert "Usage: g4convert" in ran.out
        assert ran.err == ""


def test_version(g4convert: Program) -> None:
    assert g4convert("--version").out == f"g4convert {__version__}\n"


def test_help_names_what_can_be_packed(g4convert: Program) -> None:
    words = g4convert("plan", "--help").out.replace(",", " ").replace(";", " ").split()
    assert set(PackRole) <= set(words)


def options(command: typer.core.TyperGroup) -> Iterator[str]:
    """The long options of a command and of those below it."""
    for parameter in command.params:
        yield from (name for name in parameter.opts if name.startswith("--"))
    for inner in getattr(command, "commands", {}).values():
        yield from options(inner)


def test_every_option_is_tested() -> None:
    here = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    short = {"--output": "-o", "--quiet": "-q", "--verbose": "-v", "--dry-run": "-n", "--recipe": "-r"}
    untested = {
        name
        for name in options(typer.main.get_command(cli.app))
        if f'"{name}"' not in here and f'"{short.get(name, name)}"' not in here
    }
    assert untested <= {"--install-completion", "--show-completion"}
