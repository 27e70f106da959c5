"""`g4convert fit`."""

from typing import TYPE_CHECKING, Literal, cast

from g4convert.cli.calibrate_options import Calibration
from g4convert.cli.fit_options import (
    Choices,
    MaxKl,
    Plot,
    RecipeFile,
    Replace,
    Rows,
    RowTokens,
    Sensitivities,
    TargetBits,
    TargetSize,
)
from g4convert.cli.options import FloatType, Json, Memory, Model, NoColor, Quiet, RunDevice, Verbose, Workers
from g4convert.cli.printing import print_done, print_json
from g4convert.cli.recipe_options import TensorParallel, with_recipe

if TYPE_CHECKING:
    from g4convert.planning.recipe_files import ResolvedRecipe


@with_recipe
def fit(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: RecipeFile,
    target_size: TargetSize = None,
    target_bits: TargetBits = None,
    max_kl: MaxKl = None,
    choice: Choices = None,
    resolved: "ResolvedRecipe",
    tp: TensorParallel = None,
    calibration: Calibration = None,
    rows: Rows = None,
    tokens: RowTokens = None,
    sensitivities: Sensitivities = None,
    workers: Workers = 0,
    memory: Memory = None,
    dtype: FloatType = None,
    device: RunDevice = None,
    overwrite: Replace = False,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Choose bits for each part of a model so that a size loses least, and write the recipe."""
    from g4convert.api import fit as api
    from g4convert.cli import verification
    from g4convert.fitting.choices import DEFAULT_CHOICES
    from g4convert.request import DEFAULTS

    with verification.PrintOptions(quiet=quiet, no_color=no_color).open_progress() as progress:
        fitted = api.fit(
            model,
            output,
            target_size=target_size,
            target_bits=target_bits,
            max_kl=max_kl,
            recipe=resolved,
            choices=choice or DEFAULT_CHOICES,
            calibration=calibration,
            rows=rows,
            tokens=tokens,
            sensitivities=sensitivities,
            plot=plot,
            tp=tp or (),
            memory=memory,
            dtype=cast("Literal['float32', 'bfloat16']", dtype or DEFAULTS.dtype),
            device=DEFAULTS.device if device is None else device,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(fitted.to_dict())
    elif not quiet and fitted.already_done:
        print_done(
            fitted.output, "what this command and version choose (--overwrite makes it again)", no_color=no_color
        )
    elif not quiet:
        from g4convert.cli import show, show_fit

        show_fit.print_fit(show.console(no_color=no_color), fitted, model, parts=verbose)
