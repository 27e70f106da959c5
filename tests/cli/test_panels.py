"""Help is laid out alike in all commands: one order of panels, one name and place for each option and argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import typer.main

from g4convert.cli.app import app
from g4convert.cli.panels import PANELS

if TYPE_CHECKING:
    from collections.abc import Iterator

DIFFERS: Final = {
    "--dtype": "`generate` has a default of its own",
    "--device": "`quantize` may take every GPU, a model runs on one",
    "--engine": "`verify` runs one, the others judge by the rules of several",
    "--output": "`quantize` writes a directory, the others a file",
    "--overwrite": "`fit` replaces a recipe, the others a checkpoint",
}
"""Options that are not the same in all commands, and why."""
ARGUMENTS: Final = {"MODEL", "OUT", "DIR", "RECIPE"}
VALUES: Final = ARGUMENTS | {"DATA", "FAMILY", "FILE", "LEVEL", "N", "NAME", "PATTERN", "ROLE", "SECONDS", "SIZE"}
VALUES |= {"BITS:GROUP", "ROLE=N", "TEXT", "URL"}
"""Kinds of values, as help names them."""


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 -- Typer has no public names
    """Every command that runs, by its words."""
    inner = getattr(command, "commands", {})
    for word, below in inner.items():
        yield from leaves(below, f"{name} {word}".strip())
    if not inner:
        yield name, command


COMMANDS: Final = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_panels_have_one_order(command: str) -> None:
    panels = [one.rich_help_panel for one in COMMANDS[command].params if one.param_type_name == "option"]
    found = list(dict.fromkeys(panel for panel in panels if panel is not None))
    assert found == [panel for panel in PANELS if panel in found]


def test_an_option_has_one_place_and_one_value_in_all_commands() -> None:
    seen: dict[str, dict[tuple[object, ...], list[str]]] = {}
    for name, command in COMMANDS.items():
        for one in command.params:
            if one.param_type_name == "option":
                form = (*one.opts[1:], *one.secondary_opts, one.metavar, one.rich_help_panel, one.help)
                seen.setdefault(one.opts[0], {}).setdefault(form, []).append(name)
    assert {option for option, forms in seen.items() if len(forms) > 1} == DIFFERS.keys()


def test_values_and_arguments_have_few_names() -> None:
    given = {one.metavar for command in COMMANDS.values() for one in command.params if one.metavar}
    assert given <= VALUES
    arguments = [one for command in COMMANDS.values() for one in command.params if one.param_type_name == "argument"]
    assert {one.metavar for one in arguments} <= ARGUMENTS
    assert len({(one.metavar, one.help) for one in arguments}) == len({one.metavar for one in arguments})
