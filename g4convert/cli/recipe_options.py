"""Options that override values of a recipe, in one table for all commands that take a recipe, and others about recipes.

`Recipe` checks the values, not this module, so that errors about a file and about an option have the same words.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from g4convert.cli.completion import complete_bits, complete_engine, complete_recipe, complete_value
from g4convert.cli.panels import BESIDE, RECIPE, SERVED
from g4convert.run_options import MOST_GPUS

if TYPE_CHECKING:
    from g4convert.planning.recipe_files import ResolvedRecipe

_RECIPE: Final = "A shipped recipe or a YAML file."
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=_RECIPE, autocompletion=complete_recipe)]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Engine: transformers, vllm or sglang; repeat for several. If one cannot load it, exit 1.",
        rich_help_panel=SERVED,
        autocompletion=complete_engine,
    ),
]
TensorParallel = Annotated[
    list[int] | None,
    typer.Option(
        "--tp",
        metavar="N",
        min=1,
        max=MOST_GPUS,
        help="Number of GPUs (tensor parallel) to judge for; repeat for several.",
        rich_help_panel=SERVED,
    ),
]
ShowConfig = Annotated[
    bool,
    typer.Option("--show-config", help="Print each value and its origin, then stop.", rich_help_panel=RECIPE),
]


def _option(
    kind: Any,  # noqa: ANN401 -- types
    metavar: str,
    text: str,
    *names: str,
    panel: str = RECIPE,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:  # noqa: ANN401 -- types
    """Return the annotation of an option of this type; by default its name is that of the recipe's key."""
    option = typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, autocompletion=complete)
    return Annotated[kind | None, option]


_OPTIONS: Final = {
    "num_bits": _option(int, "N", "4 or 8 bits per packed weight."),
    "group_size": _option(
        str, "N", "Weights that share a scale: 32, 64, 128, or channel; transformers reads any multiple of 8."
    ),
    "method": _option(
        str,
        "NAME",
        "Method to find codes and scales: auto, minmax, mse, lattice, imatrix, gptq or best.",
        complete=complete_value("method"),
    ),
    "signed": _option(bool, "", "Let mse choose negative scales, or not.", "--signed/--positive"),
    "pack": _option(
        list[str],
        "ROLE",
        "Role to pack: attention, mlp, experts, ple_projection, vision_tower, embedding, ple_embedding, lm_head; "
        "repeat for several.",
        complete=complete_value("pack"),
    ),
    "bits": _option(
        list[str],
        "ROLE=N",
        "Bits for a role, such as attention=8; 16 keeps it; repeat for several.",
        complete=complete_bits,
    ),
    "kv_shared": _option(
        str, "NAME", "drop or keep unused K/V of KV-shared layers.", complete=complete_value("kv_shared")
    ),
    "assistant": _option(
        str, "NAME", "keep or pack the Linears of an MTP drafter.", complete=complete_value("assistant")
    ),
    "layout": _option(str, "NAME", "full or text-only.", complete=complete_value("layout")),
    "max_shard_size": _option(str, "SIZE", "Largest output file, such as 5GB or 500MB."),
    "engines": Engines,
    "carry": _option(
        list[str],
        "PATTERN",
        "Also carry over files that would stay behind, such as .gitattributes; repeat for several.",
        panel=BESIDE,
    ),
    "leave": _option(
        list[str],
        "PATTERN",
        "Leave files beside the weights behind, such as '*.png'; repeat for several.",
        panel=BESIDE,
    ),
}
"""Annotations of the options, by the recipe's key that each overrides."""

_PARAMETERS: Final = (
    inspect.Parameter(
        "recipe",
        inspect.Parameter.KEYWORD_ONLY,
        default="w4a16-g32",
        annotation=_option(str, "RECIPE", _RECIPE, "--recipe", "-r", complete=complete_recipe),
    ),
    *(
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for key, annotation in _OPTIONS.items()
    ),
)


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the recipe's options in its signature, which Typer reads.

    Args:
        command: command with a parameter `resolved`, which gets the recipe; the options replace it in the signature.
    """
    own = inspect.signature(command).parameters

    @wraps(command)
    def run(recipe: str, **arguments: object) -> None:
        values = {key: arguments.pop(key) for key in _OPTIONS}
        command(resolved=_load_recipe(recipe, values), **arguments)

    parameters = [parameter for name in own for parameter in (_PARAMETERS if name == "resolved" else [own[name]])]
    run.__dict__ |= {"__signature__": inspect.Signature(parameters)}
    run.__annotations__ = {}
    return run


def _load_recipe(recipe: str, values: dict[str, object]) -> "ResolvedRecipe":
    from g4convert.planning.recipe_files import load

    return load(recipe, values)
