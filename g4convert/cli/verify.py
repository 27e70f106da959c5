"""`g4convert verify`."""

import typer

from g4convert.cli.options import FloatType, Json, Memory, NoColor, Quiet, RunDevice, Verbose
from g4convert.cli.printing import print_text
from g4convert.cli.verify_options import (
    Checked,
    EnginePython,
    EngineTimeout,
    EngineUrl,
    Html,
    JUnit,
    Profile,
    Prompts,
    Reference,
    Strict,
    VerifyEngine,
    VerifyLevel,
)
from g4convert.places import expand_home


def verify(  # noqa: PLR0913 - one parameter for each option
    output: Checked,
    *,
    reference: Reference = None,
    level: VerifyLevel = None,
    profile: Profile = None,
    prompts: Prompts = None,
    engine: VerifyEngine = None,
    strict: Strict = False,
    memory: Memory = None,
    dtype: FloatType = None,
    device: RunDevice = None,
    engine_python: EnginePython = None,
    engine_url: EngineUrl = None,
    engine_timeout: EngineTimeout = None,
    as_json: Json = False,
    junit: JUnit = None,
    html: Html = None,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Find what is wrong with a quantized checkpoint, say which module, and what four bits cost."""
    from g4convert.api import verify as api
    from g4convert.checkpoint import source
    from g4convert.cli import next_steps, show, verification

    directory = source.resolve(output).path
    options = verification.PrintOptions(quiet, verbose, no_color, strict, junit, html)
    options.check_places(directory, *(expand_home(path) for path in (reference, profile, prompts) if path is not None))
    with options.open_progress() as progress:
        report = api.verify(
            output,
            reference=reference,
            level=level,
            profile=profile,
            prompts=prompts,
            memory=memory,
            dtype=dtype,
            device=device,
            engine=engine,
            engine_python=engine_python,
            engine_url=engine_url,
            engine_timeout=engine_timeout,
            progress=progress,
        )
    if as_json:
        print_text(report.to_json())
    else:
        verification.print_report(report, options)
    verification.write_files(report, options, say=not as_json)
    if not as_json and not quiet:
        next_steps.show_next(show.console(no_color=no_color), *next_steps.after_verify(report))
    raise typer.Exit(report.exit_code(strict=strict))
