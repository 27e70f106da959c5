"""The command line: parse, call one function, print, set the exit status.

stdout carries the result only, stderr progress and messages. Nothing heavy is imported before a command needs
it, so `--help` answers at once.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g4convert import __version__
from g4convert.errors import EnvironmentFault, G4Error, Interrupted, UsageError

if TYPE_CHECKING:
    from g4convert.convert import Job
    from g4convert.recipe import Resolved
    from g4convert.summary import Summary

__all__ = ["app", "main"]

app = typer.Typer(
    name="g4convert",
    help="Gemma 4 checkpoints to W4A16 compressed-tensors that load, and are shown to.",
    epilog="Exit codes: 0 done, 1 a gate said no, 2 usage, 3 bad input, 5 environment, 75 interrupted and resumable.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes = typer.Typer(help="Look at recipes and check them.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")

Model = Annotated[str, typer.Argument(help="A directory, or org/name[@revision] on the Hugging Face hub.")]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", help="A shipped recipe by name, or a YAML file by path.", metavar="NAME|PATH"),
]
NumBits = Annotated[int | None, typer.Option(help="4 or 8.")]
GroupSize = Annotated[str | None, typer.Option(help="Weights that share a scale: 32, 64, 128 or channel.")]
Method = Annotated[str | None, typer.Option(help="auto, minmax, mse or lattice.")]
Signed = Annotated[bool | None, typer.Option("--signed/--positive", help="Whether mse may choose negative scales.")]
Pack = Annotated[list[str] | None, typer.Option(help="A role to pack; repeat for several.")]
KvShared = Annotated[str | None, typer.Option(help="drop or keep the unused K/V of KV-shared layers.")]
Assistant = Annotated[str | None, typer.Option(help="keep or pack the Linears of an MTP drafter.")]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="full or text-only.")]
ShardSize = Annotated[str | None, typer.Option("--max-shard-size", help="Largest output file, as 5GB or 500MB.")]
Workers = Annotated[int, typer.Option(help="Threads; 0 is one for each core, or for each GPU.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="Plain text; NO_COLOR does the same.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every tensor, not only the roles.")]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Each setting and where it came from, then stop.")]


@app.callback(invoke_without_command=True)
def _program(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False
) -> None:
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
    layout: LayoutOption = None,
    max_shard_size: ShardSize = None,
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
    )
    if show_config:
        _show_config(resolved, as_json=as_json)
        return
    from g4convert import show, source
    from g4convert.plan_report import report

    found = report(source.resolve(model), resolved, workers)
    if as_json:
        _print_json(found.to_dict(tensors=verbose))
    else:
        show.plan(show.console(no_color=no_color), found, tensors=verbose)


@app.command(epilog="Example: g4convert quantize google/gemma-4-26B-A4B-it -o gemma-4-26B-A4B-it-W4A16")
def quantize(  # noqa: PLR0913 - one parameter for each option
    model: Model,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Directory to write.")] = None,
    recipe: RecipeName = "w4a16-g32",
    num_bits: NumBits = None,
    group_size: GroupSize = None,
    method: Method = None,
    signed: Signed = None,
    pack: Pack = None,
    kv_shared: KvShared = None,
    assistant: Assistant = None,
    layout: LayoutOption = None,
    max_shard_size: ShardSize = None,
    workers: Workers = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Check everything, write nothing.")] = False,
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
    )
    if show_config:
        _show_config(resolved, as_json=as_json)
        return
    if output is None:
        raise UsageError("quantize: no output directory", hint="-o OUT says where to write")
    from g4convert import convert, show, source
    from g4convert.plan_report import report

    job = convert.Job(source.resolve(model), resolved, output, workers, device, overwrite=overwrite)
    if dry_run:
        convert.prepare(job)
        found = report(job.source, resolved, workers)
        if as_json:
            _print_json(found.to_dict(tensors=verbose))
        else:
            show.plan(show.console(no_color=no_color), found, tensors=verbose)
        return
    summary = _run(job, quiet=quiet, no_color=no_color)
    if summary is None:
        return
    if as_json:
        _print_json({"schema_version": 1, "output": str(output), **summary.to_dict()})
    elif not quiet:
        show.summary(show.console(no_color=no_color), summary, output, tensors=verbose)


@app.command(epilog="Example: g4convert inspect gemma-4-26B-A4B-it-W4A16")
def inspect(
    model: Model,
    *,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Describe any checkpoint, quantized or not, also other people's."""
    from g4convert import inspection, show, source
    from g4convert.checkpoint import Checkpoint

    found = inspection.describe(Checkpoint.open(source.resolve(model).path))
    if as_json:
        _print_json(found.to_dict())
    else:
        show.description(show.console(no_color=no_color), found)


@app.command(epilog="Example: g4convert demo --family moe")
def demo(
    directory: Annotated[Path, typer.Argument(help="Where to write the checkpoints.")] = Path("g4convert-demo"),
    *,
    family: Annotated[str, typer.Option(help="moe, dense, unified, e2b, text or assistant.")] = "moe",
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Make a tiny real checkpoint, quantize it, load the result, and compare logits."""
    from g4convert import demo as demonstration
    from g4convert import show

    found = demonstration.run(family, directory, show.messages(no_color=no_color).print)
    if as_json:
        _print_json(found.to_dict())
    else:
        show.demo(show.console(no_color=no_color), found)


@recipes.command("list")
def recipe_list(*, as_json: Json = False, no_color: NoColor = False) -> None:
    """The recipes that come with g4convert."""
    from g4convert import recipe, show

    found = {name: loaded.description for name, loaded in recipe.shipped().items()}
    if as_json:
        _print_json(found)
    else:
        show.pairs(show.console(no_color=no_color), found)


@recipes.command("show")
def recipe_show(name: Annotated[str, typer.Argument(help="A shipped recipe or a path.")]) -> None:
    """A recipe as it is written, with the command that runs it."""
    from g4convert import recipe

    recipe.load(name)
    typer.echo(recipe.source_text(name)[0], nl=False)


@recipes.command("check")
def recipe_check(name: Annotated[str, typer.Argument(help="A shipped recipe or a path.")]) -> None:
    """Check a recipe and print every setting with its origin."""
    _show_config(_recipe(name), as_json=False)


@recipes.command("schema")
def recipe_schema() -> None:
    """The JSON schema of a recipe, for editors and CI."""
    from g4convert import recipe

    _print_json(recipe.schema())


def main() -> None:
    """Run the program; the exit status is that of the error, if there is one."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except G4Error as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(Interrupted("stopped", hint="the same command starts again"))
    except MemoryError:
        _fail(EnvironmentFault("out of memory", hint="fewer --workers need less"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read stdout has seen enough
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(EnvironmentFault(f"{where}{error.strerror or error}"))


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(error: G4Error) -> None:
    from g4convert import show

    show.error(error)
    raise SystemExit(error.exit_code)


def _recipe(name: str, **options: object) -> "Resolved":
    from g4convert.recipe import load

    return load(name, options)


def _run(job: "Job", *, quiet: bool, no_color: bool) -> "Summary | None":
    """Convert, with progress; an interruption says how to go on."""
    from g4convert import convert, progress, show
    from g4convert.ranks import Ranks

    ranks = Ranks.join()
    try:
        with progress.watch(show.messages(no_color=no_color), quiet=quiet or not ranks.leads) as bar:
            return convert.convert(convert.prepare(job), bar, ranks)
    except Interrupted as error:
        raise Interrupted(error.message, hint=f"continue with: {shlex.join(['g4convert', *sys.argv[1:]])}") from error
    finally:
        ranks.leave()


def _show_config(resolved: "Resolved", *, as_json: bool) -> None:
    values = resolved.settings()
    if as_json:
        _print_json({key: {"value": value, "from": resolved.origins[key]} for key, value in values.items()})
        return
    width = max(map(len, values))
    for key, value in values.items():
        text = ", ".join(value) if isinstance(value, list) else json.dumps(value).strip('"')
        typer.echo(f"{key:<{width}}  {text:<28}  {resolved.origins[key]}")


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
