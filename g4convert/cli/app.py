"""Assembles the program from its commands, and maps errors to exit codes.

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
from g4convert.cli.crashes import record_crash
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
    help="Quantize Gemma 4 checkpoints to W4A16 compressed-tensors, and prove that the results load.",
    epilog="Exit codes: 0 done, 1 a check said no, 2 usage, 3 bad input, 4 inconclusive, 5 environment, "
    "70 a fault of g4convert, 75 interrupted (`quantize` and `calibrate` continue).",
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
    command_line = sys.argv[1:] if arguments is None else list(arguments)
    style = ErrorStyle()
    gc.set_threshold(200_000)  # a plan has a hundred thousand small objects without cycles
    try:
        status = _run_command(command_line, style)
    except KeyboardInterrupt:
        _exit_with_error(Interrupted("stopped"), style, command_line)
    raise SystemExit(status)


def _run_command(command_line: list[str], style: ErrorStyle) -> int:
    """Run a command line and return its exit status, if no error was raised.

    Raises:
        SystemExit: an error was printed; has the error's exit status.
        KeyboardInterrupt: the command was stopped.
    """
    try:
        stops.listen()
        check_streams()
        check_arguments(command_line)
        check_directory()
        status = app(command_line, prog_name="g4convert", obj=style, standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        if error.format_message():  # an error without a message means that the help was printed
            _exit_with_error(_translate_typer_error(error), style, command_line)
        status = error.exit_code
    except MemoryError:
        _exit_with_error(EnvironmentFault("out of memory", hint="fewer --workers need less"), style, command_line)
    except OSError as error:
        _exit_with_error(refusal(error), style, command_line)
    except ImportError as error:
        _exit_with_error(EnvironmentFault(f"a package cannot be loaded: {error}"), style, command_line)
    except Exception as error:  # noqa: BLE001 -- the only place that catches crashes, which are not verdicts
        _exit_with_error(error, style, command_line)
    if status == _STATUS_OF_CTRL_C:
        raise KeyboardInterrupt
    return int(status or 0)


_STATUS_OF_CTRL_C = 130
"""Exit status of Typer after Ctrl-C."""


_INVALID_CHOICE = re.compile(
    r"Invalid value for '(?P<option>--[\w-]+)'.*?: '(?P<name>.*)' is not one of (?P<known>'.*')"
)
"""Typer's message about an invalid value of an option."""


_UNKNOWN_NAME = re.compile(
    r"(?P<fault>.*?)(\. Did you mean '(?P<name>[^']+)'.*| \(Possible options: (?P<options>[^)]+)\))"
)
"""Typer's message about an unknown command or option, with similar names; several options are in no useful order."""


_EXTRA_ARGUMENT = re.compile(r"Got unexpected extra argument\(s\) \((?P<name>\S+)\)")
"""Typer's message about one argument too many."""


_OPTIONS_FOR_EXTRA = {"-o": "an output", "--reference": "the original"}
"""Options that take an argument which was given without one."""


def _translate_typer_error(error: typer.TyperException) -> UsageError:
    """Return the UsageError for an error of Typer about a command line."""
    message = error.format_message().rstrip(".").replace("Value error, ", "").replace(": Input should", ": should")
    if invalid := _INVALID_CHOICE.match(message):
        return no_such(invalid["option"], invalid["name"], re.findall(r"'([^']+)'", invalid["known"]))
    context = getattr(error, "ctx", None)
    hint = _help_hint(context.command_path if context else "g4convert")
    if context and (extra := _EXTRA_ARGUMENT.match(message)):
        options = {option for parameter in context.command.params for option in parameter.opts}
        for option, what in _OPTIONS_FOR_EXTRA.items():
            hint = f"{what} is given with {option}: {option} {extra['name']}" if option in options else hint
    if unknown := _UNKNOWN_NAME.fullmatch(message):
        message = unknown["fault"]
        known = [unknown["name"]] if unknown["name"] else unknown["options"].split(", ")
        hint = f"did you mean {get_close_matches(message.rpartition(' ')[2], known, 1, 0)[0]}?"
    return UsageError(f"{message[:1].lower()}{message[1:]}", hint=hint)


def _help_hint(command: str) -> str:
    return f"`{command} --help` shows what there is"


_RESUMABLE = ("quantize", "calibrate")
"""Commands that continue where they were stopped."""


_RESTARTED = ("verify", "reference", "generate")
"""Commands that take long, and start again after a stop."""


def _hint_after_stop(error: Interrupted, command_line: Sequence[str]) -> str:
    """Return the hint for a command that was stopped."""
    if command_line and command_line[0] in _RESUMABLE:
        return f"continue with: {shlex.join(['g4convert', *command_line])}"
    again = "nothing was kept; the same command starts again"
    return error.hint or (again if command_line and command_line[0] in _RESTARTED else "")


def _exit_with_error(raised: Exception, style: ErrorStyle, command_line: Sequence[str]) -> NoReturn:
    """Print an error and exit with its status; any error after a request to stop counts as the stop."""
    stops.end_alarms()
    error = raised if isinstance(raised, G4Error) else None
    if stops.was_asked_to_stop() and not isinstance(error, Interrupted):
        error = Interrupted("stopped")
    error = error or refusal_within(raised) or record_crash(raised)
    if isinstance(error, Interrupted):
        stops.note_printing()
        stops.print_stop(error.message, _hint_after_stop(error, command_line))
        raise SystemExit(error.exit_code)
    from g4convert.cli import show

    if isinstance(error, UsageError) and not error.hint:
        error = UsageError(error.message, offenders=error.offenders, hint=_help_hint(f"g4convert {command_line[0]}"))
    stops.note_printing()
    with suppress(OSError):  # a full or closed stderr: only the exit status reports the error
        show.print_error(show.messages(no_color=style.no_color), error, verbose=style.verbose)
    raise SystemExit(error.exit_code)
