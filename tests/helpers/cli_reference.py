"""docs/reference/cli.md, made from the program itself; `make golden` writes it anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer.core
import typer.main

from g4convert.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """# Command line

Made from the program by `make golden`; do not edit.

stdout carries the result only, stderr progress and messages. Values come from, last wins: defaults, what a recipe
extends, the recipe, options.
"""
_EXITS = {
    0: "done",
    1: "a check said no",
    2: "usage: options or a recipe",
    3: "bad input, also a file that may not be read",
    4: "inconclusive: a verification could not tell",
    5: "environment: disk, memory, device, network, a place that may not be written",
    70: "a fault of g4convert: the message names a file with the traceback",
    75: "interrupted; the same command continues",
}


def text() -> str:
    """The whole page."""
    lines = [_HEAD, "| exit code | meaning |", "|---:|---|", *(f"| {code} | {what} |" for code, what in _EXITS.items())]
    for name, command in _leaves(typer.main.get_command(app), "g4convert"):
        lines += ["", *_section(name, command)]
    return "\n".join(lines) + "\n"


def _leaves(command: typer.core.TyperCommand, name: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    inner = getattr(command, "commands", {})
    for word, below in inner.items():
        yield from _leaves(below, f"{name} {word}")
    if not inner:
        yield name, command


def _section(name: str, command: typer.core.TyperCommand) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([name, *(str(one.metavar) if one.required else f"[{one.metavar}]" for one in arguments)])
    usage += "".join(f" -o {one.metavar}" for one in command.params if one.name == "output" and "-o" in one.opts)
    yield from (f"## {name}", "", str(command.help), "", f"    {usage} [OPTIONS]", "")
    for one in arguments:
        default = "" if one.required else f" Default: `{one.default}`."
        yield from (f"`{one.metavar}`: {_plain(one.help)}{default}", "")
    options = [one for one in command.params if one.param_type_name == "option"]
    for panel in dict.fromkeys(one.rich_help_panel for one in options):
        yield from (f"| {panel or 'Options'} | | default |", "|---|---|---|")
        for one in options:
            if one.rich_help_panel == panel:
                yield _row(one)
        yield ""
    yield str(command.epilog).replace("Example: ", "Example: `") + "`"


def _row(option: typer.core.TyperOption) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = f" {option.metavar}" if option.metavar else ""
    default = option.default
    shown = f"`{default}`" if isinstance(default, str | int) and not isinstance(default, bool) else ""
    return f"| {names}{value} | {_plain(option.help)} | {shown} |"


def _plain(markup: str | None) -> str:
    return str(markup).replace("\\[", "[")
