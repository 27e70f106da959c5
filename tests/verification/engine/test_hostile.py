"""Engines that answer slowly, without end, or with something else: bounded in time and size, and told in one line."""

from __future__ import annotations

import json
import math
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.request import Request, ServedEngine
from g4convert.verification.engine import answers, http, process
from g4convert.verification.engine.answers import AnswerError, StartAnswer, parse_document, top_logits
from g4convert.verification.engine.process import Program
from g4convert.verification.engine.prompts import Prompt
from g4convert.verification.engine.sglang import Sglang
from g4convert.verification.engine.vllm import Vllm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PROMPT = Prompt((2, 5, 9), (0, 1), ())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """All of a checkpoint that an engine's side reads of it."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma4", "text_config": {"vocab_size": 16}}')
    return tmp_path


@contextmanager
def speaking(*said: bytes | Callable[[socket.socket], None]) -> Iterator[str]:
    """A server; to each connection it says the next of these, whatever it was asked."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for one in said:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                one(connection) if callable(one) else connection.sendall(one)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        thread.join(5)


def dripping(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(drop)
            time.sleep(0.05)

    return say


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * (1 << 16))


@pytest.mark.parametrize(
    "drips",
    [dripping(b"", b"H"), dripping(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), dripping(HEAD + b"\r\n", b" ")],
    ids=["status", "headers", "body"],
)
def test_an_answer_drop_by_drop_ends_in_time(drips: Callable[[socket.socket], None], checkpoint: Path) -> None:
    begin = time.monotonic()
    with speaking(drips) as url, pytest.raises(EnvironmentFault, match=r"no answer within 0\.3 s"):
        Sglang(url, checkpoint, 0.3).start(9, 4)
    assert time.monotonic() - begin < 8  # the drops last ten seconds, at the least


def test_an_endless_answer_is_cut_and_the_limit_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_ANSWER", 1 << 20)
    with speaking(endless) as url, pytest.raises(EnvironmentFault, match="over 64 MiB, the most that is read"):
        Sglang(url, checkpoint, 60).start(9, 4)


def body(content: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (body(b"[" * 100_000), "nested too deep"),
        (body(b'{"a":' * 100_000), "nested too deep"),
        (body(b"9" * 100_000), "no JSON"),
        (body(b"\xff\xfe"), "no JSON"),
        (HEAD + b"Content-Length: 1000\r\n\r\n{}", "no answer"),
        (HEAD + b"Content-Length: -5\r\n\r\n{", "no JSON"),
        (HEAD + b"A: b\r\n" * 200, "no answer"),
        (HEAD + b"A" * 100_000, "no answer"),
        (b"\0" * 1000, "no answer"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 500 \x1b[2J\r\nContent-Length: 5\r\n\r\nerror", "HTTP 500"),
    ],
)
def test_what_is_no_answer_is_a_fault(said: bytes, message: str, checkpoint: Path) -> None:
    with speaking(said) as url, pytest.raises(EnvironmentFault, match=message):
        Sglang(url, checkpoint, 5).start(9, 4)


INFO = body(b'{"model_path": "%s"}')
ROW = [[-1.0, 3, None], [-2.0, 4, None]]


@pytest.mark.parametrize(
    "change",
    [
        {"input_top_logprobs": [None, ROW, ROW[:1]]},
        {"input_top_logprobs": [None, [], []]},
        {"input_top_logprobs": [None, ROW, [[-1.0, "3", None], [-2.0, 4, None]]]},
        {"input_top_logprobs": [None, ROW, [[-1.0, 3.5, None], [-2.0, 4, None]]]},
        {"input_top_logprobs": [None, ROW, [[-1.0, 10**30, None], [-2.0, 4, None]]]},
        {"input_top_logprobs": [None, ROW, [["x", 3, None], [-2.0, 4, None]]]},
        {"input_top_logprobs": [None, ROW, [[[], 3, None], [-2.0, 4, None]]]},
        {"input_top_logprobs": [None, ROW, [[-1.0, -3, None], [-2.0, 4, None]]]},
        {"input_top_logprobs": {"0": ROW}},
        {"input_token_logprobs": [[None, 2, None], [10**400, 5, None], [-1.0, 9, None]]},
        {"input_token_logprobs": [[None, 2, None], [None, 5, None], [-1.0, 9, None]]},
        {"input_token_logprobs": 7},
    ],
)
def test_tables_of_something_else_are_faults(change: dict[str, Any], checkpoint: Path) -> None:
    meta = {
        "input_token_logprobs": [[None, 2, None], [-1.0, 5, None], [-1.0, 9, None]],
        "input_top_logprobs": [None, ROW, ROW],
    }
    info = json.dumps({"model_path": checkpoint.name}).encode()
    said = [body(info), body(json.dumps({"meta_info": meta | change}).encode())]
    with speaking(*said) as url:
        engine = Sglang(url, checkpoint, 5)
        engine.start(9, 2)
        with pytest.raises((EnvironmentFault, UsageError)):
            engine.score(PROMPT)


def test_values_that_are_no_numbers_are_left_to_the_judge() -> None:
    found = top_logits([[1, 2]], [[float("nan"), float("-inf")]], [1e300], rows=1, vocab=3)
    assert found.logprobs.shape == (1, 2)
    assert not found.target_logprob.isfinite().any()


@pytest.mark.parametrize("url", ["http://[::1", "http://host:99999", "http://:80", "ftp://host"])
def test_what_is_no_address_is_refused(url: str, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="expected http"):
        Sglang(url, checkpoint, 5)


def test_a_password_in_an_address_is_refused_and_not_told(checkpoint: Path) -> None:
    """It would be in messages, in reports and on their pages."""
    with pytest.raises(UsageError, match="user's name or password") as caught:
        Sglang("http://me:secret@localhost:1", checkpoint, 5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e20, 604_801, 0.5, -1])
def test_a_time_that_no_timer_holds_is_refused(seconds: float) -> None:
    """It ended in a traceback of a thread, and exit 70."""
    with pytest.raises(UsageError, match=r"--engine-timeout \S+: expected 1 to 604,800 seconds, a week"):
        Request(Path("out"), engine=ServedEngine.SGLANG, engine_url="http://localhost:1", engine_timeout=seconds)


def test_an_interpreter_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("no program")
    for place, why in ((tmp_path / "nothing", "No such file or directory"), (tmp_path / "python", "Permission denied")):
        before = len([*Path("/proc/self/fd").iterdir()])
        with pytest.raises(EnvironmentFault) as caught:
            Program([str(place)], timeout=60)
        assert (caught.value.message, caught.value.hint) == (f"{place}: {why}", "name an interpreter")
        assert len([*Path("/proc/self/fd").iterdir()]) == before, "a pipe is left open"


def child(code: str) -> Program:
    """A program in place of an engine's interpreter: `questions` and `replies` are its pipes."""
    head = "import os, sys, time\nquestions, replies = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), 'w')\n"
    return Program([sys.executable, "-S", "-c", head + code], timeout=60)


def test_a_child_that_drips_ends_in_time() -> None:
    begin = time.monotonic()
    code = "while True:\n  replies.write(' '); replies.flush(); time.sleep(0.05)"
    program = child(code)
    program._timeout = 0.5  # noqa: SLF001 -- the interpreter's start takes longer on a busy machine
    with program, pytest.raises(EnvironmentFault, match=r"no answer within 0\.5 s"):
        program.ask(do="start")
    assert time.monotonic() - begin < 30


def test_a_child_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_ANSWER", 1 << 20)
    with (
        child("while True: replies.write(' ' * 65536)") as program,
        pytest.raises(EnvironmentFault, match="over 64 MiB, the most that is read"),
    ):
        program.ask(do="start")


def test_of_a_long_log_the_end_is_told() -> None:
    with child("sys.stdout.write('x' * 1_000_000 + '\\nend\\n'); sys.stdout.flush(); os._exit(3)") as program:
        with pytest.raises(EnvironmentFault, match="exit status 3") as fault:
            program.ask(do="start")
        assert fault.value.offenders[-1] == "end"
        assert sum(map(len, fault.value.offenders)) < 1 << 17


GOOD = {
    "event": "started",
    "phase": "ready",
    "parameters": 3,
    "unwatched": 0,
    "unfilled": [],
    "supplied": [],
    "mended": [],
}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"event": "another"},
        GOOD | {"parameters": "3"},
        GOOD | {"parameters": -1},
        GOOD | {"unfilled": [{"name": "a", "share": 5}]},
        GOOD | {"unfilled": [3]},
        GOOD | {"mended": {"a": 1}},
    ],
)
def test_a_start_that_is_told_in_another_form_is_a_fault(answer: dict[str, Any], checkpoint: Path) -> None:
    code = (
        f"questions.readline(); replies.write({json.dumps(answer) + chr(10)!r}); replies.flush(); questions.readline()"
    )
    with child(code) as program, pytest.raises(EnvironmentFault, match="not started as it should"):
        Vllm(program, checkpoint, None).start(9, 2)


def test_a_start_in_the_right_form_is_taken() -> None:
    assert StartAnswer.model_validate(GOOD).parameters == 3


@pytest.mark.parametrize(
    "answer", [{"event": "scored"}, {"event": "scored", "ids": [[99]], "logprobs": [[-1]], "true": [0]}, {}]
)
def test_a_score_of_something_else_is_a_fault(answer: dict[str, Any], checkpoint: Path) -> None:
    lines = "".join(json.dumps(one) + "\n" for one in (GOOD, answer))
    with child(f"questions.readline(); replies.write({lines!r}); replies.flush(); questions.read()") as program:
        engine = Vllm(program, checkpoint, None)
        engine.start(9, 2)
        with pytest.raises(EnvironmentFault):
            engine.score(PROMPT)


def test_limits_are_told_by_the_error() -> None:
    with pytest.raises(AnswerError, match="64 MiB"):
        raise answers.OversizeError
    with pytest.raises(AnswerError, match="no JSON object"):
        parse_document(b"[1]")
