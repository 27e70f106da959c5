"""Commands whose flags are shown without a type: `--help` takes nothing, so its help says nothing of a `<bool>`."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Group"]


class Command(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- Typer has no public names for these
        """Its parameters, `--help` among them."""
        return _untyped(super().get_params(ctx))


class Group(TyperGroup):
    """A command that has others below it."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 -- Typer has no public names for these
        """Its parameters, `--help` and those of completion among them."""
        return _untyped(super().get_params(ctx))


def _untyped(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return parameters
