"""The command line: parse, call one function, print, set the exit status.

stdout carries the result only, stderr progress and messages. Nothing heavy is imported before a command needs
it, so `--help` answers at once.
"""

import gc
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from g4convert import __version__
from g4convert.errors import EnvironmentFault, G4Error, Interrupted, UsageError
from g4convert.family import Family
from g4convert.options import (
    Assistant,
    AssistantOf,
    Autotune,
    Checked,
    Device,
    Directory,
    DryRun,
    EnginePython,
    Engines,
    EngineTimeout,
    EngineUrl,
    FamilyName,
    Fix,
    FloatType,
    GroupSize,
    Html,
    Json,
    JUnit,
    KvShared,
    Layout,
    Manner,
    MaxNewTokens,
    Memory,
    Method,
    Model,
    NoColor,
    NumBits,
    Output,
    Overwrite,
    Pack,
    Profile,
    Prompt,
    Prompts,
    Quiet,
    RecipeArgument,
    RecipeName,
    Reference,
    RunDevice,
    ShardSize,
    ShowConfig,
    Signed,
    SpeechType,
    StoredReference,
    Strict,
    TensorParallel,
    Verbose,
    VerifyAfter,
    VerifyEngine,
    VerifyLevel,
    Version,
    Workers,
)
from g4convert.verify.levels import Level, MemoryUse, Request

if TYPE_CHECKING:
    from g4convert.convert import Job
    from g4convert.plan_report import PlanReport
    from g4convert.recipe import Resolved
    from g4convert.summary import Summary

__all__ = ["app", "main"]

app = typer.Typer(
    name="g4convert",
    help="Gemma 4 checkpoints to W4A16 compressed-tensors that load, and are shown to.",
    epilog="Exit codes: 0 done, 1 a check said no, 2 usage, 3 bad input, 4 inconclusive, 5 environment, "
    "75 interrupted and resumable.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes = typer.Typer(
    help="List, show and check recipes.",
    epilog="Example: g4convert recipe show qat-q4_0",
    no_args_is_help=True,
)
app.add_typer(recipes, name="recipe")


@app.callback(invoke_without_command=True)
def _program(*, version: Version = False) -> None:
    if version:
        typer.echo(f"g4convert {__version__}")
        raise typer.Exit


@app.command(epilog="Example: g4convert plan google/gemma-4-26B-A4B-it -r w4a16-g32")
def plan(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    recipe: RecipeName = "w4a16-g32",
    num_bits: NumBits = None,
    group_size: GroupSize = None,
    method: Method = None,
    signed: Signed = None,
    pack: Pack = None,
    kv_shared: KvShared = None,
    assistant: Assistant = None,
    layout: Layout = None,
    max_shard_size: ShardSize = None,
    engine: Engines = None,
    tp: TensorParallel = None,
    workers: Workers = 0,
    show_config: ShowConfig = False,
    as_json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Show what would be written, from names and headers alone: nothing is read or written."""
    resolved = _recipe(
        recipe,
        num_bits=num_bits,
        group_size=group_size,
        method=method,
        signed=signed,
        pack=pack,
        kv_shared=kv_shared,
        assistant=assistant,
        layout=layout,
        max_shard_size=max_shard_size,
        engines=engine,
    )
    if show_config:
        _show_config(resolved, as_json=as_json, no_color=no_color)
        return
    from g4convert import source
    from g4convert.engines.fit import TENSOR_PARALLEL
    from g4convert.plan_report import report
    from g4convert.serving import hold

    found = report(source.resolve(model), resolved, workers, tp or TENSOR_PARALLEL)
    _show_plan(found, as_json=as_json, no_color=no_color, verbose=verbose)
    hold(found.plan, tp or (1,))


@app.command(epilog="Example: g4convert quantize google/gemma-4-26B-A4B-it -o gemma-4-26B-A4B-it-W4A16")
def quantize(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: Output = None,
    recipe: RecipeName = "w4a16-g32",
    num_bits: NumBits = None,
    group_size: GroupSize = None,
    method: Method = None,
    signed: Signed = None,
    pack: Pack = None,
    kv_shared: KvShared = None,
    assistant: Assistant = None,
    layout: Layout = None,
    max_shard_size: ShardSize = None,
    engine: Engines = None,
    tp: TensorParallel = None,
    workers: Workers = 0,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    verify: VerifyAfter = "weights",
    dry_run: DryRun = False,
    show_config: ShowConfig = False,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Write a W4A16 checkpoint. Killed at any point, the same command continues it."""
    resolved = _recipe(
        recipe,
        num_bits=num_bits,
        group_size=group_size,
        method=method,
        signed=signed,
        pack=pack,
        kv_shared=kv_shared,
        assistant=assistant,
        layout=layout,
        max_shard_size=max_shard_size,
        engines=engine,
    )
    if show_config:
        _show_config(resolved, as_json=as_json, no_color=no_color)
        return
    from g4convert import convert, show, source
    from g4convert import device as devices
    from g4convert.plan_report import PlanReport

    level = _level(verify)
    found = source.resolve(model)
    if output is None:
        name = f"{found.name.rpartition('/')[2]}-W{resolved.recipe.num_bits}A16"
        raise UsageError("no output directory", hint=f"say where to write: -o {shlex.quote(name)}")
    job = convert.Job(found, resolved, output, workers, device, overwrite=overwrite, tps=tuple(tp or (1,)))
    if dry_run:
        conversion = convert.prepare(job)
        devices.workers_for(device, workers)
        report = PlanReport.of(found, resolved, conversion.plan, conversion.layout, workers)
        _show_plan(report, as_json=as_json, no_color=no_color, verbose=verbose)
        return
    summary = _run(job, quiet=quiet, no_color=no_color)
    if summary is None:
        return
    from g4convert import verification

    how = verification.Printed(quiet=quiet, verbose=verbose, no_color=no_color)
    found_out = None if level is None else verification.run(Request(output, found.path, level), how)
    passed = found_out is None or found_out.exit_code(strict=False) == 0
    if found_out is not None and passed:
        verification.tell_end(found_out, how, as_json=as_json)
    if as_json:
        document = {"schema_version": 1, "output": str(output), **summary.to_dict()}
        _print_json(document | ({} if found_out is None else {"verify": found_out.to_dict()}))
    elif not quiet:
        show.summary(show.console(no_color=no_color), summary, output, tensors=verbose)
    if found_out is not None and not passed:
        verification.tell_end(found_out, how, as_json=as_json)


@app.command(epilog="Example: g4convert verify gemma-4-26B-A4B-it-W4A16 --reference google/gemma-4-26B-A4B-it")
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
    from g4convert import source, verification

    given = None if reference is None else source.file_or_model(reference)
    asked = Request(
        output, given, level, profile, prompts, memory, dtype, device, engine, engine_python, engine_url, engine_timeout
    )
    how = verification.Printed(quiet, verbose, no_color, strict, junit, html)
    found = verification.run(asked, how)
    if as_json:
        _print(found.to_json())
    else:
        verification.print_report(found, how)
    raise typer.Exit(found.exit_code(strict=strict))


@app.command(epilog="Example: g4convert check somebodys-gemma-4-W4A16 --engine vllm --tp 2")
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
    from g4convert import show, show_engines, source
    from g4convert.check import Asked
    from g4convert.check import check as judge
    from g4convert.fix import fix as mend

    target = None if assistant_of is None else source.resolve(assistant_of).path
    asked = Asked.of(output, engine or (), tp or (), target)
    if fix and (kept := mend(output, asked.required)):
        text = f"config.json: quantization_config corrected; the old file is {kept.name}"
        show.messages(no_color=no_color).print(text, soft_wrap=True, markup=False)
    found = judge(asked)
    if as_json:
        _print_json(found.to_dict())
    elif not quiet or found.report.exit_code(strict=strict):
        show_engines.checked(show.console(no_color=no_color), found, strict=strict, verbose=verbose)
    raise typer.Exit(found.report.exit_code(strict=strict))


@app.command(epilog="Example: g4convert reference google/gemma-4-26B-A4B-it -o ref.safetensors")
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
    from g4convert import source, verification

    asked = Request(output, None, Level.LOGITS, None, prompts, memory, dtype, device)
    found = verification.store(source.resolve(model), asked, verification.Printed(quiet=quiet, no_color=no_color))
    if as_json:
        _print_json(found)
    elif not quiet:
        from g4convert import show

        show.pairs(show.console(no_color=no_color), {key: str(value) for key, value in found.items()})


@app.command(epilog='Example: g4convert generate gemma-4-26B-A4B-it-W4A16 -p "Why is the sky blue?"')
def generate(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    prompt: Prompt = None,
    max_new_tokens: MaxNewTokens = 128,
    device: RunDevice = None,
    memory: Memory = None,
    dtype: SpeechType = "bfloat16",
    autotune: Autotune = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Let a checkpoint answer, greedily: a smoke test for a person to read."""
    asked = _prompts(prompt)
    from g4convert import show, source
    from g4convert.generate import Speaker

    path = source.resolve(model).path
    speaker = Speaker.load(path, device=device or "cpu", memory=(memory or MemoryUse.AUTO).value, dtype=dtype)
    talk = show.Talk(no_color=no_color, quiet=quiet, mute=as_json, several=len(asked) > 1)
    if autotune is not None:
        talk.tuned(autotune, speaker.tune(autotune))
    answers = []
    for one in asked:
        with talk.about(one):
            answers.append(speaker.answer(one, max_new_tokens=max_new_tokens, show=talk.show))
        talk.measured(answers[-1])
    if as_json:
        _print_json(speaker.to_dict(answers))


@app.command(epilog="Example: g4convert inspect gemma-4-26B-A4B-it-W4A16")
def inspect(
    model: Model,
    *,
    as_json: Json = False,
    no_color: NoColor = False,
    verbose: Verbose = False,
) -> None:
    """Describe any checkpoint, quantized or not, also other people's."""
    from g4convert import inspection, show, source
    from g4convert.checkpoint import Checkpoint

    found = inspection.describe(Checkpoint.open(source.resolve(model).path))
    if as_json:
        _print_json(found.to_dict())
    else:
        show.description(show.console(no_color=no_color), found, verbose=verbose)


@app.command(epilog="Example: g4convert demo --family moe")
def demo(
    directory: Directory = Path("g4convert-demo"),
    *,
    family: FamilyName = Family.MOE,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Make a tiny real checkpoint, quantize it, load the result, and compare logits."""
    from g4convert import demo as demonstration
    from g4convert import show

    messages = show.messages(no_color=no_color)
    found = demonstration.run(family, directory, lambda text: None if quiet else messages.print(text, soft_wrap=True))
    if as_json:
        _print_json(found.to_dict())
    else:
        show.demo(show.console(no_color=no_color), found, quiet=quiet)


@recipes.command("list", epilog="Example: g4convert recipe list")
def recipe_list(*, as_json: Json = False, no_color: NoColor = False) -> None:
    """List the recipes that come with g4convert."""
    from g4convert import recipe, show

    found = {name: loaded.description for name, loaded in recipe.shipped().items()}
    if as_json:
        _print_json(found)
    else:
        show.pairs(show.console(no_color=no_color), found)


@recipes.command("show", epilog="Example: g4convert recipe show w4a16-experts-only > mine.yaml")
def recipe_show(name: RecipeArgument) -> None:
    """Print a recipe as it is written, with the command that runs it."""
    from g4convert import recipe

    recipe.load(name)
    _print(recipe.source_text(name)[0])


@recipes.command("check", epilog="Example: g4convert recipe check mine.yaml")
def recipe_check(name: RecipeArgument, *, as_json: Json = False, no_color: NoColor = False) -> None:
    """Check a recipe and print every value with its origin."""
    _show_config(_recipe(name), as_json=as_json, no_color=no_color)


@recipes.command("schema", epilog="Example: g4convert recipe schema > recipe.schema.json")
def recipe_schema() -> None:
    """Print the JSON schema of a recipe, for editors and CI."""
    from g4convert import recipe

    _print_json(recipe.schema())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; the exit status is that of the error, if there is one.

    Args:
        arguments: the command line without the program's name; by default that of this process.

    Raises:
        SystemExit: always, with the exit status.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    manner = Manner()
    signal.signal(signal.SIGTERM, _stop)
    gc.set_threshold(200_000)  # a plan is a hundred thousand small values without cycles
    try:
        status = app(given, prog_name="g4convert", obj=manner, standalone_mode=False)
        if status == _STOPPED:
            _fail(Interrupted("stopped"), manner, given)
    except G4Error as error:
        _fail(error, manner, given)
    except typer.TyperException as error:
        if error.format_message():  # without one the help was asked for and is printed
            _fail(_usage(error), manner, given)
        status = error.exit_code
    except MemoryError:
        _fail(EnvironmentFault("out of memory", hint="fewer --workers need less"), manner, given)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(EnvironmentFault(f"{where}{error.strerror or error}"), manner, given)
    raise SystemExit(status)


_STOPPED = 130
"""What Typer makes of Ctrl-C."""


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _usage(error: typer.TyperException) -> UsageError:
    """A command line that Typer refuses, in our words."""
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "g4convert"
    return UsageError(f"{message[:1].lower()}{message[1:]}", hint=f"`{command} --help` shows what there is")


def _fail(error: G4Error, manner: Manner, given: Sequence[str]) -> None:
    from g4convert import show

    if isinstance(error, Interrupted):
        error = Interrupted(error.message, hint=f"continue with: {shlex.join(['g4convert', *given])}")
    show.error(show.messages(no_color=manner.no_color), error, verbose=manner.verbose)
    raise SystemExit(error.exit_code)


def _recipe(name: str, **options: object) -> "Resolved":
    from g4convert.recipe import load

    return load(name, options)


def _prompts(given: Sequence[str] | None) -> list[str]:
    """What is asked; `-` is read from stdin."""
    found = [sys.stdin.read().rstrip("\n") if one == "-" else one for one in given or ()]
    if not found or not all(one.strip() for one in found):
        raise UsageError("an empty prompt" if found else "no prompt", hint='say what to ask: -p "Why is the sky blue?"')
    return found


def _level(name: str) -> Level | None:
    """The level to verify a conversion at; None for none."""
    if name == "none":
        return None
    levels = [level for level in Level if level is not Level.ENGINE]
    if name not in levels:
        hint = "`g4convert verify --engine` does" if name == Level.ENGINE else ""
        raise UsageError(f"--verify {name!r} is not one of none, {', '.join(levels)}", hint=hint)
    return Level(name)


def _run(job: "Job", *, quiet: bool, no_color: bool) -> "Summary | None":
    """Convert, with progress."""
    from g4convert import convert, progress, show
    from g4convert.ranks import Ranks

    ranks = Ranks.join()
    try:
        with progress.watch(show.messages(no_color=no_color), quiet=quiet or not ranks.leads) as bar:
            return convert.convert(convert.prepare(job), bar, ranks)
    finally:
        ranks.leave()


def _show_plan(found: "PlanReport", *, as_json: bool, no_color: bool, verbose: bool) -> None:
    from g4convert import show

    if as_json:
        _print_json(found.to_dict(tensors=verbose))
    else:
        show.plan(show.console(no_color=no_color), found, tensors=verbose)


def _show_config(resolved: "Resolved", *, as_json: bool, no_color: bool) -> None:
    from g4convert import show

    if as_json:
        values = resolved.settings()
        _print_json({key: {"value": value, "from": resolved.origins[key]} for key, value in values.items()})
    else:
        show.settings(show.console(no_color=no_color), resolved)


def _print_json(document: Mapping[str, Any]) -> None:
    _print(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _print(text: str) -> None:
    """Text as it is, on stdout."""
    from g4convert import show

    show.console(no_color=True).out(text, end="", highlight=False)
