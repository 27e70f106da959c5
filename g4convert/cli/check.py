"""`g4convert check`."""

from pathlib import Path

import typer

from g4convert.cli.options import Json, NoColor, Quiet, Verbose
from g4convert.cli.printing import print_json
from g4convert.cli.recipe_options import Engines, TensorParallel
from g4convert.cli.verify_options import AssistantOf, Checked, Fix, Strict
from g4convert.errors import GateError, UsageError


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
    from g4convert.api.check import check as judge
    from g4convert.checkpoint import source
    from g4convert.cli import next_steps, show, show_engines
    from g4convert.inspection.engines import CheckRequest
    from g4convert.inspection.fix import Fixed
    from g4convert.inspection.fix import fix as mend

    asked = CheckRequest.of(Path(output), engine or (), tp or ())  # names first: they need no look-up
    found_at = source.resolve(output)
    if fix and found_at.revision:
        raise UsageError(
            f"--fix: {found_at.path} is a snapshot of the Hugging Face cache, which other programs share",
            hint=next_steps.mending(output),
        )
    fixed: Fixed | GateError | None = None
    if fix:
        try:
            fixed = mend(found_at.path, asked.required)
            show_engines.mended(show.messages(no_color=no_color), fixed)
        except GateError as error:
            if not as_json:
                raise
            fixed = error
    found = judge(output, engines=asked.engines, tp=asked.tps, assistant_of=assistant_of)
    if as_json:
        print_json(found.to_dict() | ({"fix": show_engines.mended_json(fixed)} if fix else {}))
    elif not quiet or found.report.exit_code(strict=strict):
        out = show.console(no_color=no_color)
        command = next_steps.made_anew(output)
        show_engines.checked(out, found, command=command, strict=strict, verbose=verbose)
        if not quiet:
            next_steps.show_next(out, *next_steps.after_check(found))
    if isinstance(fixed, GateError):
        raise fixed
    raise typer.Exit(found.report.exit_code(strict=strict))
