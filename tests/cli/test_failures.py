"""Every failure of a command has its status and words."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from helpers.program import Program, g4convert

from g4convert.cli import show
from g4convert.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["g4convert"]


@pytest.fixture
def misfit(moe: Path, tmp_path: Path) -> Path:
    """A source whose config promises thirty layers."""
    source = shutil.copytree(moe, tmp_path / "misfit")
    config = json.loads((source / "config.json").read_text())
    text = config["text_config"]
    text |= {"num_hidden_layers": 30, "layer_types": text["layer_types"] * 10}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_a_long_error_does_not_drown_the_terminal(misfit: Path, g4convert: Program) -> None:
    ran = g4convert("plan", misfit)
    lines = ran.err.splitlines()
    assert (ran.status, ran.out, len(lines)) == (3, "", 23)
    assert lines[-2].endswith("more (-v lists all)")
    assert lines[-1].startswith("hint: ")
    assert len(g4convert("plan", misfit, "-v").err.splitlines()) > 500


def test_errors_keep_every_offender(capsys: pytest.CaptureFixture[str]) -> None:
    problem = InputError("wrong", offenders=map(str, range(11_000)), hint="right it")
    assert len(problem.offenders) == 11_000
    show.print_error(show.messages(no_color=True), problem)
    assert capsys.readouterr().err.splitlines()[-2:] == ["  and 10,980 more (-v lists all)", "hint: right it"]


def test_a_second_path_is_told_its_option(g4convert: Program) -> None:
    ran = g4convert("quantize", "MODEL", "OUT")
    assert (ran.status, ran.err.splitlines()[1]) == (2, "hint: an output is given with -o: -o OUT")
    assert "--help` shows what there is" in g4convert("plan", "MODEL", "OUT").err


@pytest.mark.parametrize("command", [("plan",), ("quantize", "-o", "out"), ("check",), ("verify",)])
def test_every_command_says_the_same_of_an_unknown_engine(command: tuple[str, ...], g4convert: Program) -> None:
    known = "vllm, sglang" if command == ("verify",) else "transformers, vllm, sglang"
    for name in ("vlm", "VLLM"):
        ran = g4convert(*command, "nothing", "--engine", name)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == f"error: --engine {name}: not one of {known}\nhint: did you mean vllm?\n"
    hint = f"hint: `g4convert {command[0]} --help` shows what there is\n"
    assert g4convert(*command, "nothing", "--engine", "llama.cpp").err.endswith(hint)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("plna",), 2, "no such command 'plna'\nhint: did you mean plan?\n"),
        (("plan",), 2, "missing argument 'MODEL'"),
        (("plan", "x", "--methd", "mse"), 2, "no such option: --methd\nhint: did you mean --method?"),
        (("quantize", "x", "--ouput", "y"), 2, "no such option: --ouput\nhint: did you mean --output?"),
        (
            ("plan", "x", "--workers", "-1"),
            2,
            "'--workers': should be greater than or equal to 0",
        ),
        (("plan", "x", "--workers", "many"), 2, "invalid value for '--workers'"),
        (("plan", "x", "--method", "rtn"), 2, "--method rtn: not one of auto, minmax, mse, lattice"),
        (("plan", "x", "-r", "w4a16-g23"), 2, "hint: did you mean w4a16-g32?"),
        (("plan", "x", "-r", "./none.yaml"), 2, "recipe ./none.yaml: no such file"),
        (("recipe", "shwo"), 2, "hint: did you mean show?"),
        (("recipe", "show", "nothing"), 2, "hint: `g4convert recipe list` shows them; a path works too"),
        (("recipe", "check", "nothing"), 2, "recipe nothing: not one of the shipped recipes"),
        (("demo", "--family", "llama"), 2, "--family llama: not one of moe, dense, unified"),
        (("plan", "nothing"), 3, "nothing: no such directory"),
        (("inspect", "nothing"), 3, "nothing: no such directory"),
        (("quantize", "nothing", "-o", "out"), 3, "nothing: no such directory"),
        (("plan", "google/gemma-4-E2B-it"), 5, "not in the Hugging Face cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_failures_have_a_status_and_a_hint(  # noqa: PLR0913, PLR0917 - a table and where it runs
    arguments: tuple[str, ...],
    status: int,
    message: str,
    g4convert: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = g4convert(*arguments)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "\nhint: " in ran.err
    assert "Traceback" not in ran.err


def test_a_gate_says_no(g4convert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g4convert.demo import run as demo  # noqa: PLC0415 - brings torch

    monkeypatch.setattr(demo, "PARITY", -1.0)
    ran = g4convert("demo", tmp_path, "--family", "text", "-q")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("error: the packed result computes something else")


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (MemoryError(), 5, "error: out of memory\nhint: fewer --workers need less\n"),
        (
            PermissionError(13, "Permission denied", "/root/x"),
            5,
            "error: /root/x: Permission denied\nhint: look at the permissions there, and at the umask\n",
        ),
        (BlockingIOError(11, "Try again"), 5, "error: Try again\n"),
        (KeyboardInterrupt(), 75, "error: stopped\nhint: continue with: g4convert quantize 'a b' -o :x:\n"),
    ],
)
def test_what_the_machine_does(
    raised: BaseException, status: int, text: str, g4convert: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise raised

    monkeypatch.setattr("g4convert.checkpoint.source.resolve", fail)
    ran = g4convert("quantize", "a b", "-o", ":x:")  # which rich would make a picture of
    assert (ran.status, ran.err) == (status, text)


def test_what_cannot_be_continued_is_only_stopped(g4convert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("g4convert.checkpoint.source.resolve", fail)
    assert (g4convert("plan", "x").status, g4convert("plan", "x").err) == (75, "error: stopped\n")
    again = "error: stopped\nhint: nothing was kept; the same command starts again\n"
    for words in (("verify", "x"), ("generate", "x", "-p", "y"), ("reference", "x", "-o", "y.safetensors")):
        assert g4convert(*words).err == again


def test_an_original_without_its_option_is_told_where_it_belongs(g4convert: Program) -> None:
    ran = g4convert("verify", "OUT", "MODEL")
    assert ran.status == 2
    assert "hint: the original is given with --reference: --reference MODEL" in ran.err
