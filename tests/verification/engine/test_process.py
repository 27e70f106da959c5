"""A child process that answers in JSON lines, and is always ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from g4convert.errors import EnvironmentFault
from g4convert.verification.engine.process import Program


def program(code: str, timeout: float = 20) -> Program:
    return Program([sys.executable, "-c", f"import os, sys, time\n{code}"], timeout=timeout)


ECHO = """
replies = os.fdopen(int(sys.argv[2]), 'w')
for line in os.fdopen(int(sys.argv[1])):
    replies.write({})
    replies.flush()
"""


def test_long_questions_and_answers_arrive_whole() -> None:
    with program(ECHO.format("line")) as echo:
        for length in (1, 1 << 20, 5):
            assert echo.ask(text="x" * length) == {"text": "x" * length}


@pytest.mark.parametrize("answer", ["'no json\\n'", "'[1]\\n'"])
def test_an_answer_that_is_no_object_is_a_fault(answer: str) -> None:
    with program(ECHO.format(answer)) as echo, pytest.raises(EnvironmentFault, match="no JSON"):
        echo.ask(a=1)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, EnvironmentFault])
def test_nothing_is_left_when_this_process_stops(stop: type[BaseException], tmp_path: Path) -> None:
    """Not even what the program has started."""
    note = tmp_path / "pids"
    code = (
        "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n" + ECHO.format("line")
    )

    def interrupted() -> None:
        with program(code) as running:
            running.ask(a=1)
            raise stop("stop")

    with pytest.raises(stop):
        interrupted()
    for pid in map(int, note.read_text().split()):
        assert gone(pid)


def gone(pid: int) -> bool:
    """Return True if a process has ended, waiting a little for whoever inherits it."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False
