"""Options that override values of a recipe, or set requirements on the result.

`Recipe` checks the values, not this module, so that errors about a file and about an option have the same words.
"""

from typing import Annotated

import typer

from g4convert.cli.panels import BESIDE, RECIPE, SERVED

__all__ = [
    "Assistant",
    "Bits",
    "Carry",
    "Engines",
    "GroupSize",
    "KvShared",
    "Layout",
    "Leave",
    "Method",
    "NumBits",
    "Pack",
    "RecipeArgument",
    "RecipeName",
    "ShardSize",
    "ShowConfig",
    "Signed",
    "TensorParallel",
]

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", metavar="RECIPE", help="A shipped recipe or a YAML file.", rich_help_panel=RECIPE),
]
NumBits = Annotated[
    int | None, typer.Option(metavar="N", help="4 or 8 bits per packed weight.", rich_help_panel=RECIPE)
]
GroupSize = Annotated[
    str | None,
    typer.Option(metavar="N", help="Weights that share a scale: 32, 64, 128, or channel.", rich_help_panel=RECIPE),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Method to find codes and scales: auto, minmax, mse, lattice, imatrix, gptq or best.",
        rich_help_panel=RECIPE,
    ),
]
Signed = Annotated[
    bool | None,
    typer.Option(
        "--signed/--positive", metavar="", help="Allow mse to take negative scales, or not.", rich_help_panel=RECIPE
    ),
]
Pack = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE",
        help="Role to pack: attention, mlp, experts, ple_projection, vision_tower, embedding, ple_embedding, lm_head; "
        "repeat for several.",
        rich_help_panel=RECIPE,
    ),
]
Bits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=N",
        help="Other bits for a role, as attention=8; 16 keeps it; repeat for several.",
        rich_help_panel=RECIPE,
    ),
]
KvShared = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="drop or keep unused K/V of KV-shared layers.", rich_help_panel=RECIPE),
]
Assistant = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="keep or pack the Linears of an MTP drafter.", rich_help_panel=RECIPE),
]
Layout = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="full or text-only.", rich_help_panel=RECIPE),
]
ShardSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Largest output file, as 5GB or 500MB.", rich_help_panel=RECIPE)
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="transformers, vllm or sglang; repeat for several. If one cannot, exit 1.",
        rich_help_panel=SERVED,
    ),
]
TensorParallel = Annotated[
    list[int] | None,
    typer.Option(
        "--tp",
        metavar="N",
        min=1,
        help="Judge at so many GPUs (tensor parallel); repeat for several.",
        rich_help_panel=SERVED,
    ),
]
Carry = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Also carry over files that would stay behind, as .gitattributes; repeat for several.",
        rich_help_panel=BESIDE,
    ),
]
Leave = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave files beside the weights behind, as '*.png'; repeat for several.",
        rich_help_panel=BESIDE,
    ),
]
ShowConfig = Annotated[
    bool,
    typer.Option(
        "--show-config", metavar="", help="Print each value and its origin, then stop.", rich_help_panel=RECIPE
    ),
]
