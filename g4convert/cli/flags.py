"""Commands whose help shows flags without a type, and `-o` in the line of usage.

`--help` takes no value, so that `<bool>` would mislead.
"""

from pathlib import Path
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

from g4convert.places import expand_home

_PATHS: Final = {"FILE", "OUT", "DIR"}
"""Names that help gives to values which are paths."""


class Command(TyperCommand):
    """Command whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- Typer has no public names for these
        """Return the command's parameters, with `--help`."""
        return _hide_flag_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 -- the same
        """Return the parts of the line of usage: the arguments, and the option that names what is written."""
        outputs = (
            f"-o {parameter.metavar}"
            for parameter in self.params
            if parameter.name == "output" and "-o" in parameter.opts
        )
        return [*super().collect_usage_pieces(ctx), *outputs]

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 -- the same
        """Run the command, with `~` replaced in the paths among its arguments."""
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if parameter.metavar in _PATHS and isinstance(value, str | Path):
                ctx.params[parameter.name] = type(value)(expand_home(value))
        return super().invoke(ctx)


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
