"""Options of a fit: the target, the choices, and the measurements."""

from pathlib import Path
from typing import Annotated

import typer

from g4convert.cli.panels import print_option, run_option

RecipeFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Recipe to write, ending in .yaml.")]
Replace = Annotated[bool, run_option("--overwrite", help="Replace an existing recipe.")]
TargetSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Size of all tensors, such as 14GB or 500MB.")]
TargetBits = Annotated[
    float | None, typer.Option(metavar="N", help="Mean bits per weight of what is chosen, with scales, such as 4.75.")
]
MaxKl = Annotated[
    float | None, typer.Option(metavar="N", help="Largest mean KL to MODEL in nats, on the texts that are run.")
]
Choices = Annotated[
    list[str] | None,
    typer.Option(
        "--choice",
        metavar="BITS:GROUP",
        help="Packing to try, such as 4:32 or 8:channel, or 16 to keep; repeat for several. Default: 4:128, 4:64, "
        "4:32, 8:channel, 8:32, 16.",
    ),
]
Rows = Annotated[
    int | None,
    run_option(
        metavar="N",
        min=1,
        max=1 << 20,
        help="Samples to measure single changes on; as many others measure whole choices. Default: 8, or half of all.",
    ),
]
RowTokens = Annotated[
    int | None,
    run_option(
        "--tokens",
        metavar="N",
        min=2,
        max=1 << 20,
        help="Tokens of each sample to run. Default: 64, or whole samples if they are shorter.",
    ),
]
Sensitivities = Annotated[
    Path | None,
    run_option(
        metavar="FILE", help="File that keeps the measured losses for the next target. Default: beside the recipe."
    ),
]
Plot = Annotated[Path | None, print_option(metavar="FILE", help="SVG of size against KL: frontier, choice, presets.")]
