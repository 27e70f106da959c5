"""Commands whose help shows flags without a type: `--help` takes no value, so that `<bool>` would mislead."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """Command whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- Typer has no public names for these
        """Return the command's parameters, with `--help`."""
        return _hide_flag_types(super().get_params(ctx))


class Group(TyperGroup):
    """Command with subcommands whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- Typer has no public names for these
        """Return the command's parameters, with `--help` and the options of completion."""
        return _hide_flag_types(super().get_params(ctx))


def _hide_flag_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters
