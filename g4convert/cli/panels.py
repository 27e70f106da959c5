"""Panels of a command's help, and callbacks and texts of the options in them.

PANELS             Order of the panels in every command's help
ErrorStyle         Options of printing errors
store_error_style  Callback of an option that sets a field of `ErrorStyle`
mark_default       Marks the default among the names that an option takes

`run_option`, `print_option` and `verify_option` are `typer.Option` with their panel.
"""

from dataclasses import dataclass
from functools import partial

import typer

from g4convert.request import DEFAULTS

RECIPE = "Recipe, and values that override it"
SERVED = "What must load it"
BESIDE = "Files beside the weights"
_VERIFY = "What is verified"
_RUN = "Run"
_PRINT = "What is printed"
PANELS = (RECIPE, SERVED, BESIDE, _VERIFY, _RUN, _PRINT)
"""Order of the panels in every command's help; options without a panel, such as `--output`, come first."""

verify_option = partial(typer.Option, rich_help_panel=_VERIFY)
run_option = partial(typer.Option, rich_help_panel=_RUN)
print_option = partial(typer.Option, rich_help_panel=_PRINT)


@dataclass(slots=True)
class ErrorStyle:
    """Options for printing an error, set by the options of the command that raises it."""

    verbose: bool = False
    no_color: bool = False


def store_error_style(ctx: typer.Context, param: typer.CallbackParam, value: bool) -> bool:  # noqa: FBT001 - as Typer calls it
    """Store an option's value in the command's `ErrorStyle`, and return it."""
    setattr(ctx.ensure_object(ErrorStyle), str(param.name), value)
    return value


def mark_default(setting: str, *names: str) -> str:
    """Return the names that an option takes, with the default of `Settings` marked."""
    default = getattr(DEFAULTS, setting)
    return ", ".join(f"{name} (default)" if name == default else name for name in names)
