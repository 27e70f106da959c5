"""`verify`, `check` and `reference`."""

from dataclasses import replace
from pathlib import Path

import typer

from g4convert.cli.options import (
    AssistantOf,
    Checked,
    EnginePython,
    Engines,
    EngineTimeout,
    EngineUrl,
    Fix,
    FloatType,
    Html,
    Json,
    JUnit,
    Memory,
    Model,
    NoColor,
    Profile,
    Prompts,
    Quiet,
    Reference,
    RunDevice,
    StoredReference,
    Strict,
    TensorParallel,
    Verbose,
    VerifyEngine,
    VerifyLevel,
)
from g4convert.cli.printing import print_json, print_text
from g4convert.errors import UsageError
from g4convert.request import Level, Request

__all__ = ["check", "reference", "verify"]


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
    from g4convert.checkpoint import source
    from g4convert.cli import verification

    out = source.resolve(output).path
    given = None if reference is None else source.file_or_model(reference)
    asked = Request(
        out, given, level, profile, prompts, memory, dtype, device, engine, engine_python, engine_url, engine_timeout
    )
    how = verification.Printed(quiet, verbose, no_color, strict, junit, html)
    found = verification.run(asked, how)
    if as_json:
        print_text(found.to_json())
    else:
        verification.print_report(found, how)
    raise typer.Exit(found.exit_code(strict=strict))


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
    from g4convert.checkpoint import source
    from g4convert.cli import show, show_engines
    from g4convert.inspection.engines import Asked
    from g4convert.inspection.engines import check as judge
    from g4convert.inspection.fix import fix as mend

    asked = Asked.of(Path(output), engine or (), tp or ())  # names first: they cost no look-up
    found_at = source.resolve(output)
    target = None if assistant_of is None else source.resolve(assistant_of).path
    asked = replace(asked, directory=found_at.path, target=target)
    if fix and found_at.revision:
        raise UsageError(
            f"--fix: {found_at.path} is a snapshot of the Hugging Face cache, which other programs share",
            hint=f"hf download {found_at.name} --local-dir DIR; g4convert check DIR --fix",
        )
    if fix and (fixed := mend(found_at.path, asked.required)):
        text = f"config.json: quantization_config corrected; the old file is {fixed.kept.name}"
        lines = "\n".join((text, *(f"  {line}" for line in fixed.changes)))
        show.messages(no_color=no_color).print(lines, soft_wrap=True, markup=False)
    found = judge(asked)
    if as_json:
        print_json(found.to_dict())
    elif not quiet or found.report.exit_code(strict=strict):
        show_engines.checked(show.console(no_color=no_color), found, strict=strict, verbose=verbose)
    raise typer.Exit(found.report.exit_code(strict=strict))


def reference(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: StoredReference,
    prompts: Prompts = None,
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

    asked = Request(output, None, Level.LOGITS, None, prompts, memory, dtype, device)
    found = verification.store(source.resolve(model), asked, verification.Printed(quiet=quiet, no_color=no_color))
    if as_json:
        print_json(found)
    elif not quiet:
        from g4convert.cli import show

        show.pairs(show.console(no_color=no_color), {key: str(value) for key, value in found.items()})
