"""Streams that are closed or full, names that forge output, crashes: one line, the right exit code, no traceback."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from helpers.grids import one_in
from helpers.program import Program, g4convert
from hypothesis import given
from hypothesis import strategies as st

from g4convert.cli.app import app, recipe
from g4convert.printable import printable, printable_lines

__all__ = ["g4convert"]  # a fixture


def shell(command: str, place: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which G is the program."""
    line = command.replace("G ", f"{shlex.quote(sys.executable)} -m g4convert ", 1)
    return subprocess.run(["/bin/bash", "-c", line], cwd=place, check=False, capture_output=True, timeout=240)


@pytest.mark.parametrize(
    ("command", "status"),
    one_in(
        3,
        [
            ("G plan MODEL >&-", 5),
            ("G plan MODEL >/dev/full", 5),
            ("G plan MODEL 2>&-", 0),
            ("G generate MODEL -p - <&-", 2),
            ("G plan MODEL 2>/dev/full", 0),
            ("G plan nothing 2>&-", 3),
            ("G plan nothing 2>/dev/full", 3),
            ("G quantize MODEL -o one --verify none >&-", 5),
            ("G quantize MODEL -o two --verify none 2>/dev/full", 0),
            ("G quantize MODEL -o three --verify none 2>&-", 0),
            ("G quantize MODEL -o $'four\\xff' --verify none", 2),
            ("G quantize MODEL -o $'five\\nerror: forged' --verify none", 2),
            ("env -u HOME G plan MODEL", 0),
        ],
    ),
)
def test_streams_and_names_that_cannot_be_used(command: str, status: int, moe: Path, tmp_path: Path) -> None:
    shutil.copytree(moe, tmp_path / "MODEL")
    ran = shell(command.replace("env -u HOME G ", f"env -u HOME {shlex.quote(sys.executable)} -m g4convert "), tmp_path)
    assert ran.returncode == status, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert ran.stderr.count(b"error:") <= 1 or b"forged" in ran.stderr
    assert not any(line.startswith(b"error: forged") for line in ran.stderr.splitlines())
    made = {path.name for path in tmp_path.iterdir()} - {"MODEL"}
    assert made == ({command.split("-o ")[1].split(maxsplit=1)[0]} if status == 0 and "-o" in command else set())


COMMANDS = [
    *(str(command.callback.__name__) for command in app.registered_commands if command.callback),
    *(f"recipe {command.name}" for command in recipe.registered_commands),
]
GONE = "error: the current directory was deleted\nhint: cd to a directory that is there\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_was_deleted_is_named(
    command: str, g4convert: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By every command and with paths of any kind: torch and MKL ask for the current directory."""
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    ran = g4convert(*command.split(), tmp_path, "-o", tmp_path / "out")
    assert (ran.status, ran.out, ran.err) == (5, "", GONE)
    assert not list(tmp_path.iterdir())


@pytest.mark.wide
def test_a_program_that_starts_in_a_deleted_directory_names_it(tmp_path: Path) -> None:
    ran = shell("mkdir gone && cd gone && rmdir ../gone && G verify /nothing", tmp_path)
    assert (ran.returncode, ran.stderr.decode()) == (5, GONE)


@pytest.mark.parametrize("columns", ["0", "1", "-3", "many"])
def test_the_width_of_a_terminal_loses_no_result(
    columns: str, g4convert: Program, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ran = g4convert("plan", dense)
    assert ran.status == 0
    assert "dense" in ran.out


STOPPED_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Stops:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            sys.argv[1] = ""
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Stops())
from g4convert.cli.start import main
main(sys.argv[3:])
"""


CUT_SHORT = "yaml.cyaml"
"""A module whose package, `yaml`, cannot be imported again once it was stopped."""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        *one_in(
            3,
            product(
                ("typer", "g4convert.cli.verify", "yaml", "g4convert.checkpoint.source", "rich.markup"),
                (signal.SIGINT, signal.SIGTERM),
            ),
        ),
        (CUT_SHORT, signal.SIGTERM),
    ],
)
def test_a_stop_while_modules_are_imported_is_one_line(module: str, number: signal.Signals, tmp_path: Path) -> None:
    """Before the command, in it, and while an error is told."""
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED_AT, module, str(int(number)), "plan", str(tmp_path / "nothing")],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (75, b"")
    assert ran.stderr == b"error: stopped\n"


STOPPED_LATE = """
import sys
from g4convert.cli import app, start, stops
def late(_):
    if "told" in sys.argv: stops.note_printing()
    raise KeyboardInterrupt
app.main = late
start.main(["plan"])
"""


@pytest.mark.parametrize(("before", "printed"), [("told", b""), ("silent", b"error: stopped\n")])
def test_a_stop_when_the_command_is_over_is_one_line_too(before: str, printed: bytes) -> None:
    """Between the command's end and the program's: it was exit 75 without a word."""
    ran = subprocess.run([sys.executable, "-c", STOPPED_LATE, before], check=False, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (75, printed)


STOPPED_IN = """
import os, signal, sys, threading, time
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
class Stops:
    def find_spec(self, name, *_):
        if name == "g4convert.checkpoint.source":
            sys.meta_path.remove(self)
            exec(sys.argv[1])
            time.sleep(5)
sys.meta_path.insert(0, Stops())
from g4convert.cli.start import main
main(["plan", "nothing"])
"""
PLACES = {
    "a destructor": ("type('D', (), {'__del__': lambda _: (stop(), time.sleep(0.01))})()", b""),
    "code that holds a lock": (
        "exec('os.kill(os.getpid(), 15); print(1, file=sys.stderr)', {**globals(), '__name__': 'threading'})",
        b"1\n",
    ),
    "a library that raises another exception": (
        "try: stop()\nexcept BaseException as error: raise ValueError from error",
        b"",
    ),
    "a library that drops it, and goes on": (
        "try: stop()\nexcept BaseException: pass\ntime.sleep(2)\nprint(1, file=sys.stderr)",
        b"",
    ),
    "code that cleans up after it": (
        "try: stop()\nfinally:\n  time.sleep(0.5)\n  print(1, file=sys.stderr)",
        b"1\n",
    ),
    "a wait for a thread": ("threading.Timer(0.1, stop).start(); threading.Event().wait()", b""),
}


@pytest.mark.wide
@pytest.mark.parametrize("place", PLACES)
def test_a_stop_that_cannot_be_raised_comes_again(place: str, tmp_path: Path) -> None:
    """Python prints an exception in a destructor, and goes on; one in code that holds a lock leaves it locked."""
    code, printed = PLACES[place]
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED_IN, code], check=False, capture_output=True, timeout=60, cwd=tmp_path
    )
    assert (ran.returncode, ran.stderr) == (75, printed + b"error: stopped\n")


def test_a_package_that_is_missing_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from g4convert.cli.start import main; main(['plan', 'x'])"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=60, cwd=tmp_path)
    assert ran.returncode == 5
    assert ran.stderr.startswith(b"error: a package cannot be loaded: ")
    assert ran.stderr.count(b"\n") == 1


@pytest.mark.wide
@pytest.mark.parametrize("threads", one_in(2, ["0", "many"]))
def test_threads_of_numba_are_no_matter_of_ours(threads: str, dense: Path, tmp_path: Path) -> None:
    """Numba ends its own import with a traceback; a wrong number stayed in the environment of a job."""
    command = [sys.executable, "-m", "g4convert", "quantize", dense, "-o", tmp_path / "out", "-q", "--verify", "none"]
    assert subprocess.run(command, check=False, env=os.environ | {"NUMBA_NUM_THREADS": threads}).returncode == 0


@pytest.mark.wide
@pytest.mark.parametrize(
    ("kilobytes", "command"),
    [(60_000, "plan MODEL"), (200_000, "quantize MODEL -o out"), (500_000, "quantize MODEL -o out --verify none")],
)
def test_memory_that_is_limited_is_one_line(kilobytes: int, command: str, dense: Path, tmp_path: Path) -> None:
    """While modules are imported, while a library maps its code, and while the model is converted."""
    (tmp_path / "MODEL").symlink_to(dense)
    program = f"ulimit -v {kilobytes}; {shlex.quote(sys.executable)} -m g4convert {command}"
    ran = subprocess.run(["/bin/bash", "-c", program], cwd=tmp_path, check=False, capture_output=True, timeout=240)
    error, *hint = ran.stderr.decode().splitlines()
    assert (ran.returncode, ran.stdout) == (5, b"")
    assert error.startswith("error: ")
    assert all(line.startswith("hint: ") for line in hint)
    assert not (tmp_path / "out").exists()


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2028" for c in shown)
    assert printable(shown) == shown
    assert printable_lines(text).count("\n") == text.count("\n")


def test_names_in_a_checkpoint_cannot_move_the_cursor(g4convert: Program, moe: Path, tmp_path: Path) -> None:
    source = shutil.copytree(moe, tmp_path / "a\x1b[2J\nerror: forged")
    ran = g4convert("plan", source / "nothing")
    assert ran.status == 3
    assert "\x1b" not in ran.err
    assert ran.err.count("\n") == ran.err.count("\nhint:") + 1
