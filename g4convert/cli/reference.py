"""`g4convert reference`."""

from g4convert.cli.calibrate_options import Replace
from g4convert.cli.options import FloatType, Json, Memory, Model, NoColor, Quiet, RunDevice
from g4convert.cli.printing import print_done, print_json
from g4convert.cli.verify_options import Prompts, StoredReference
from g4convert.request import Level, Request


def reference(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: StoredReference,
    prompts: Prompts = None,
    overwrite: Replace = False,
    memory: Memory = None,
    dtype: FloatType = None,
    device: RunDevice = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Store what a model answers, so that its quantized forms can be verified without it."""
    from g4convert.checkpoint import source
    from g4convert.cli import verification

    request = Request(output, None, Level.LOGITS, None, prompts, memory, dtype, device)
    options = verification.PrintOptions(quiet=quiet, no_color=no_color)
    place = source.resolve(model)
    stored = verification.store_reference(place, request, options, overwrite=overwrite)
    if as_json:
        print_json(stored)
    elif not quiet and stored.get("already_done"):
        made_by = f"{place.typed} by this command and version (--overwrite makes it again)"
        print_done(output, made_by, no_color=no_color)
    elif not quiet:
        from g4convert.cli import show

        show.print_reference(show.console(no_color=no_color), stored, place.typed)
