"""`g4convert check`."""

import typer

from g4convert.cli.options import Json, NoColor, Quiet, Verbose
from g4convert.cli.printing import print_json
from g4convert.cli.recipe_options import Engines, TensorParallel
from g4convert.cli.verify_options import AssistantOf, Checked, Fix, Strict
from g4convert.errors import GateError, UsageError
from g4convert.places import expand_home


def check(  # noqa: PLR0913 - one parameter for each option
    output: Checked,
    *,
    engine: Engines = None,
    tp: TensorParallel = None,
    assistant_of: AssistantOf = None,
    fix: Fix = False,
    strict: Strict = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Say which engines load a checkpoint, from its headers, and what each would get wrong."""
    from g4convert.api import check as api
    from g4convert.checkpoint import source
    from g4convert.cli import next_steps, show, show_engines
    from g4convert.inspection import fix as config_fix
    from g4convert.inspection.engines import CheckRequest

    request = CheckRequest.of(expand_home(output), engine or (), tp or ())  # names first: they need no look-up
    place = source.resolve(output)
    if fix and place.revision:
        raise UsageError(
            f"--fix: {place.path} is a snapshot of the Hugging Face cache, which other programs share",
            hint=next_steps.fix_command(output),
        )
    outcome: config_fix.Fixed | GateError | None = None
    if fix:
        try:
            outcome = config_fix.fix(place.path, request.required)
            show_engines.print_fix(show.messages(no_color=no_color), outcome)
        except GateError as error:
            if not as_json:
                raise
            outcome = error
    checked = api.check(output, engines=request.engines, tp=request.tps, assistant_of=assistant_of)
    if as_json:
        print_json(checked.to_dict() | ({"fix": show_engines.fix_to_dict(outcome)} if fix else {}))
    elif not quiet or checked.report.exit_code(strict=strict):
        out = show.console(no_color=no_color)
        command = next_steps.requantize_command(output)
        show_engines.print_check(out, checked, command=command, strict=strict, verbose=verbose)
        if not quiet:
            next_steps.show_next(out, *next_steps.after_check(checked))
    if isinstance(outcome, GateError):
        raise outcome
    raise typer.Exit(checked.report.exit_code(strict=strict))
