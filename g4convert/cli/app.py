"""The command line: parses arguments, calls one function, prints, and sets the exit status.

stdout has the result only; progress and messages go to stderr. Heavy modules are imported only when a command needs
them, so that `--help` answers at once.
"""

import gc
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import NoReturn

import typer

from g4convert import __version__
from g4convert.cli import recipe as recipes
from g4convert.cli import stops
from g4convert.cli.calibrate import calibrate
from g4convert.cli.check import check
from g4convert.cli.crashes import crash
from g4convert.cli.demo import demo
from g4convert.cli.fit import fit
from g4convert.cli.flags import Command, Group
from g4convert.cli.generate import generate
from g4convert.cli.inspect import inspect
from g4convert.cli.options import Version
from g4convert.cli.panels import ErrorStyle
from g4convert.cli.plan import plan
from g4convert.cli.quantize import quantize
from g4convert.cli.reference import reference
from g4convert.cli.streams import check_arguments, check_directory, check_streams
from g4convert.cli.verify import verify
from g4convert.errors import EnvironmentFault, G4Error, Interrupted, UsageError
from g4convert.refusals import refusal, refusal_within
from g4convert.suggestions import no_such

app = typer.Typer(
    name="g4convert",
    cls=Group,
    help="Gemma 4 checkpoints to W4A16 compressed-tensors that load, and are shown to.",
    epilog="Exit codes: 0 done, 1 a check said no, 2 usage, 3 bad input, 4 inconclusive, 5 environment, "
    "70 a fault of g4convert, 75 interrupted (`quantize` goes on where it was).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipe = typer.Typer(
    cls=Group,
    help="List, show and check recipes.",
    epilog="Example: g4convert recipe show qat-q4_0",
    no_args_is_help=True,
)
for _command, _example in (
    (plan, "plan google/gemma-4-26B-A4B-it -r w4a16-g32"),
    (quantize, "quantize google/gemma-4-26B-A4B-it -o gemma-4-26B-A4B-it-W4A16"),
    (calibrate, "calibrate google/gemma-4-26B-A4B-it -o calibration.safetensors --data mine.jsonl"),
    (fit, "fit google/gemma-4-E4B-it -o e4b-5bit.yaml --target-bits 5"),
    (verify, "verify gemma-4-26B-A4B-it-W4A16 --reference google/gemma-4-26B-A4B-it"),
    (check, "check somebodys-gemma-4-W4A16 --engine vllm --tp 2"),
    (reference, "reference google/gemma-4-26B-A4B-it -o ref.safetensors"),
    (generate, 'generate gemma-4-26B-A4B-it-W4A16 -p "Why is the sky blue?"'),
    (inspect, "inspect gemma-4-26B-A4B-it-W4A16"),
    (demo, "demo --family moe"),
):
    app.command(cls=Command, epilog=f"Example: g4convert {_example}")(_command)
for _name, _command, _example in (
    ("list", recipes.list_, "list"),
    ("show", recipes.show, "show w4a16-experts-only > mine.yaml"),
    ("check", recipes.check, "check mine.yaml"),
    ("schema", recipes.schema, "schema > recipe.schema.json"),
):
    recipe.command(_name, cls=Command, epilog=f"Example: g4convert recipe {_example}")(_command)
app.add_typer(recipe, name="recipe")


@app.callback(invoke_without_command=True)
def _program(*, version: Version = False) -> None:
    if version:
        typer.echo(f"g4convert {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with the status of the command or of the error.

    Args:
        arguments: the command line without the program's name; None uses the arguments of this process.

    Raises:
        SystemExit: always, with the exit status.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    manner = ErrorStyle()
    gc.set_threshold(200_000)  # a plan has a hundred thousand small objects without cycles
    try:
        status = _status(given, manner)
    except KeyboardInterrupt:
        _fail(Interrupted("stopped"), manner, given)
    raise SystemExit(status)


def _status(given: list[str], manner: ErrorStyle) -> int:
    """Run a command line and return its exit status, if no error was raised.

    Raises:
        SystemExit: an error was printed; has the error's exit status.
        KeyboardInterrupt: the command was stopped.
    """
    try:
        stops.listen()
        check_streams()
        check_arguments(given)
        check_directory()
        status = app(given, prog_name="g4convert", obj=manner, standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        if error.format_message():  # an error without a message means that the help was printed
            _fail(_usage(error), manner, given)
        status = error.exit_code
    except MemoryError:
        _fail(EnvironmentFault("out of memory", hint="fewer --workers need less"), manner, given)
    except OSError as error:
        _fail(refusal(error), manner, given)
    except ImportError as error:
        _fail(EnvironmentFault(f"a package cannot be loaded: {error}"), manner, given)
    except Exception as error:  # noqa: BLE001 -- the only place that catches crashes, which are not verdicts
        _fail(error, manner, given)
    if status == _STOPPED:
        raise KeyboardInterrupt
    return int(status or 0)


_STOPPED = 130
"""Exit status of Typer after Ctrl-C."""


_CHOICE = re.compile(r"Invalid value for '(?P<option>--[\w-]+)'.*?: '(?P<name>.*)' is not one of (?P<known>'.*')")
"""Typer's message about an invalid value of an option."""


_MEANT = re.compile(r"(?P<fault>.*?)(\. Did you mean '(?P<name>[^']+)'.*| \(Possible options: (?P<options>[^)]+)\))")
"""Typer's message about an unknown command or option, with similar names: of several options in no useful order."""


_MORE = re.compile(r"Got unexpected extra argument\(s\) \((?P<name>\S+)\)")
"""Typer's message about one argument too many."""


_INSTEAD = {"-o": "an output", "--reference": "the original"}
"""Options that take what was given as one argument too many."""


def _usage(error: typer.TyperException) -> UsageError:
    """Return Typer's error about a command line as a UsageError in our words."""
    message = error.format_message().rstrip(".").replace("Value error, ", "").replace(": Input should", ": should")
    if chosen := _CHOICE.match(message):
        return no_such(chosen["option"], chosen["name"], re.findall(r"'([^']+)'", chosen["known"]))
    context = getattr(error, "ctx", None)
    hint = _help(context.command_path if context else "g4convert")
    if context and (more := _MORE.match(message)):
        options = {option for one in context.command.params for option in one.opts}
        for option, what in _INSTEAD.items():
            hint = f"{what} is given with {option}: {option} {more['name']}" if option in options else hint
    if meant := _MEANT.fullmatch(message):
        message = meant["fault"]
        known = [meant["name"]] if meant["name"] else meant["options"].split(", ")
        hint = f"did you mean {get_close_matches(message.rpartition(' ')[2], known, 1, 0)[0]}?"
    return UsageError(f"{message[:1].lower()}{message[1:]}", hint=hint)


def _help(command: str) -> str:
    return f"`{command} --help` shows what there is"


_CONTINUED = ("quantize", "calibrate")
"""Commands that go on from where they were stopped."""


_STARTED_AGAIN = ("verify", "reference", "generate")
"""Commands that take long and keep nothing of what they had done."""


def _after_stop(error: Interrupted, given: Sequence[str]) -> str:
    """Return the hint on a command that was stopped."""
    if given and given[0] in _CONTINUED:
        return f"continue with: {shlex.join(['g4convert', *given])}"
    again = "nothing was kept; the same command starts again"
    return error.hint or (again if given and given[0] in _STARTED_AGAIN else "")


def _fail(raised: Exception, manner: ErrorStyle, given: Sequence[str]) -> NoReturn:
    """Print an error and exit with its status; whatever is raised after a stop is the stop."""
    from g4convert.cli import show

    error = raised if isinstance(raised, G4Error) else None
    if stops.was_asked_to_stop() and not isinstance(error, Interrupted):
        error = Interrupted("stopped")
    error = error or refusal_within(raised) or crash(raised)
    if isinstance(error, Interrupted):
        error = Interrupted(error.message, hint=_after_stop(error, given))
    if isinstance(error, UsageError) and not error.hint:
        error = UsageError(error.message, offenders=error.offenders, hint=_help(f"g4convert {given[0]}"))
    stops.tell()
    with suppress(OSError):  # a full or closed stderr: only the exit status reports the error
        show.error(show.messages(no_color=manner.no_color), error, verbose=manner.verbose)
    raise SystemExit(error.exit_code)
