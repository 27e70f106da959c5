"""Panels of a command's help, and what the options in them need.

PANELS    Order of the panels in every command's help
Manner    Manner in which errors are printed
manner    Callback of an option that sets it
marked    Marks the default among the names that an option takes
"""

from dataclasses import dataclass

import typer

from g4convert.request import DEFAULTS

__all__ = ["BESIDE", "PANELS", "PRINT", "RECIPE", "RUN", "SERVED", "VERIFY", "Manner", "manner", "marked"]

RECIPE = "Recipe, and values that override it"
SERVED = "What must load it"
BESIDE = "Files beside the weights"
VERIFY = "What is verified"
RUN = "Run"
PRINT = "What is printed"
PANELS = (RECIPE, SERVED, BESIDE, VERIFY, RUN, PRINT)
"""Order of the panels in every command's help; options in none of them, such as `--output`, stand before."""


@dataclass(slots=True)
class Manner:
    """Manner in which errors are printed; the options of the command that raises them set it."""

    verbose: bool = False
    no_color: bool = False


def manner(ctx: typer.Context, param: typer.CallbackParam, value: bool) -> bool:  # noqa: FBT001 - as Typer calls it
    """Keep a value in the command's `Manner`."""
    setattr(ctx.ensure_object(Manner), str(param.name), value)
    return value


def marked(setting: str, *names: str) -> str:
    """Return the names that an option takes, the one that `Settings` has marked as the default."""
    default = getattr(DEFAULTS, setting)
    return ", ".join(f"{name} (default)" if name == default else name for name in names)
