"""The program run inside the test process: same `main`, no second interpreter."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import typer

from g4convert.cli import app as cli

COMMAND = typer.main.get_command(cli.app)
"""The program's commands; `app` would build all of them again in each run."""

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Ran:
    """Result of a command."""

    status: int
    out: str
    err: str


class Program(Protocol):
    """Runs `g4convert` with the given arguments."""

    def __call__(self, *arguments: object) -> Ran:
        """Run it to its end."""
        ...


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level logits asks one question of each kind, answered in two tokens: for tests of what is around it."""
    from g4convert.verification.logits import level  # noqa: PLC0415 -- brings torch
    from helpers.prompts import first_of_each  # noqa: PLC0415 -- the same

    make_probes = level.make_probes

    def few(*given: Any, **more: Any) -> Any:  # noqa: ANN401 -- handed on
        return first_of_each(make_probes(*given, **more, tokens=1))

    monkeypatch.setattr(level, "make_probes", few)
    monkeypatch.setattr(level, "_ANSWER_TOKENS", 2)


@pytest.fixture
def g4convert(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """`g4convert ARGUMENTS`, 100 columns wide, without colour and without a network."""
    for name, value in {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "app", COMMAND)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, before)
