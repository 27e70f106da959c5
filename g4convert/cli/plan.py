"""`g4convert plan`."""

from typing import TYPE_CHECKING

from g4convert.cli.options import Json, Model, NoColor, Verbose, Workers
from g4convert.cli.printing import print_plan, print_settings
from g4convert.cli.recipe_options import ShowConfig, TensorParallel, with_recipe

if TYPE_CHECKING:
    from g4convert.planning.recipe_files import ResolvedRecipe


@with_recipe
def plan(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    resolved: "ResolvedRecipe",
    tp: TensorParallel = None,
    workers: Workers = 0,
    show_config: ShowConfig = False,
    as_json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Show what would be written, from names and headers alone: no weight is read, nothing is written."""
    if show_config:
        print_settings(resolved, as_json=as_json, no_color=no_color)
        return
    from g4convert.api import plan as api
    from g4convert.engines.verdicts import TENSOR_PARALLEL

    report = api.plan(model, recipe=resolved, tp=tp or TENSOR_PARALLEL, workers=workers)
    print_plan(report, as_json=as_json, no_color=no_color, verbose=verbose)
    report.outlook.require_engines(report.plan.recipe, tp or (1,))
    if not as_json and report.plan.quantized:
        from g4convert.cli import next_steps, show, show_methods

        command = next_steps.after_plan(model, report.source.name, resolved, tp or ()).command
        next_steps.show_next(show.console(no_color=no_color), command, show_methods.advise_method(report.costs))
