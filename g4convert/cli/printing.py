"""Printing of results as plain text, as JSON, or as tables."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g4convert.planning.recipe_files import ResolvedRecipe
    from g4convert.planning.report import PlanReport


def print_settings(resolved: "ResolvedRecipe", *, as_json: bool, no_color: bool) -> None:
    """Print the values of a recipe, each with its origin, as a table or JSON."""
    from g4convert.cli import show

    if as_json:
        values = resolved.settings()
        print_json({key: {"value": value, "from": resolved.origins[key]} for key, value in values.items()})
    else:
        show.print_settings(show.console(no_color=no_color), resolved)


def print_done(output: object, made_by: str, *, no_color: bool) -> None:
    """Print that an output is there, made by the same command before."""
    from rich.markup import escape

    from g4convert.cli import show
    from g4convert.cli.tables import print_prose

    text = f"already done: {output} is {made_by}"
    print_prose(show.console(no_color=no_color), escape(text))


def print_json(document: Mapping[str, Any]) -> None:
    """Print a JSON document on stdout."""
    print_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_text(text: str) -> None:
    """Print text on stdout unchanged."""
    from g4convert.cli import show

    show.console(no_color=True).out(text, end="", highlight=False)


def print_plan(report: "PlanReport", *, as_json: bool, no_color: bool, verbose: bool) -> None:
    """Print a plan as text or JSON."""
    from g4convert.cli import show, show_plan

    if as_json:
        print_json(report.to_dict(tensors=verbose))
    else:
        show_plan.print_plan(show.console(no_color=no_color), report, tensors=verbose)
