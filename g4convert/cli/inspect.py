"""`g4convert inspect`."""

from g4convert.cli.options import Json, Model, NoColor, Verbose
from g4convert.cli.printing import print_json


def inspect(
    model: Model,
    *,
    as_json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Describe any checkpoint, quantized or not, also other people's."""
    from g4convert import inspection
    from g4convert.checkpoint import source
    from g4convert.checkpoint.directory import Checkpoint
    from g4convert.cli import show

    description = inspection.describe(Checkpoint.open(source.resolve(model).path))
    if as_json:
        print_json(description.to_dict())
    else:
        show.print_description(show.console(no_color=no_color), description, verbose=verbose)
