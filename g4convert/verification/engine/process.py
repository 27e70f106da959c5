"""Child process in another interpreter that answers questions in JSON lines and is always ended.

    this process --questions--> program --replies--> this process        two pipes of their own
                                   |
                                   +--stdout, stderr--> a file, whose end is shown when the program fails

The program leads a process group. The whole group is killed when an answer takes too long, when the program dies, and
when this process stops for any reason, Ctrl-C included.
"""

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from g4convert.errors import EnvironmentFault
from g4convert.verification.engine.answers import MOST_ANSWER, AnswerError, OversizeError, parse_document

_LOG_LINES: Final = 20
_GRACE_SECONDS: Final = 5.0
_READ_BYTES: Final = 1 << 16


class Program:
    """A running program; leaving the context ends it and all processes that it started.

    Args:
        command: command line of the program; the file descriptors of its pipes are added as arguments.
        timeout: seconds that an answer may take.
        environment: environment variables of the program; by default this process's.
    """

    def __init__(self, command: Sequence[str], *, timeout: float, environment: Mapping[str, str] | None = None) -> None:
        self._timeout = timeout
        self._log: BinaryIO = tempfile.TemporaryFile(prefix="g4convert-")  # noqa: SIM115 -- closed by `close`
        self._rest = b""
        questions, self._write = os.pipe()
        self._read, replies = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- the user's own interpreter
                [*command, str(questions), str(replies)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(questions, replies),
                start_new_session=True,
                env=None if environment is None else dict(environment),
            )
        except OSError as error:
            for pipe in (self._write, self._read):
                os.close(pipe)
            self._log.close()
            raise EnvironmentFault(f"{command[0]}: {error.strerror}", hint="name an interpreter") from error
        finally:
            os.close(questions)
            os.close(replies)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._kill()
        self.close()

    def ask(self, **question: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
        """Send a question, and return the answer.

        Raises:
            EnvironmentFault: no answer in time, an answer that is too large or no JSON object, or the program ended.
        """
        deadline = time.monotonic() + self._timeout
        try:
            self._send(json.dumps(question).encode() + b"\n", deadline)
            line = self._read_line(deadline)
        except BrokenPipeError:
            line = b""
        if not line:
            raise self.fault(f"it ended with {self._describe_end()}")
        try:
            return parse_document(line)
        except AnswerError as error:
            raise self.fault(f"its answer is {error}") from error

    def log(self) -> str:
        """Return the last lines that the program printed."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _READ_BYTES))
        lines = self._log.read(_READ_BYTES).decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def close(self) -> None:
        """End the program: close its pipes, wait for its exit, then kill the process group."""
        if self._log.closed:
            return
        os.close(self._write)
        os.close(self._read)
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        finally:
            self._kill()
            self._log.close()

    def _send(self, content: bytes, deadline: float) -> None:
        os.set_blocking(self._write, False)
        while content:
            self._wait(self._write, selectors.EVENT_WRITE, deadline)
            content = content[os.write(self._write, content[:_READ_BYTES]) :]

    def _read_line(self, deadline: float) -> bytes:
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            if size > MOST_ANSWER:
                self._kill()
                raise self.fault(str(OversizeError()))
            self._wait(self._read, selectors.EVENT_READ, deadline)
            part = os.read(self._read, _READ_BYTES)
            if not part:
                return b""
            parts.append(part)
            size += len(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self._kill()
                raise self.fault(f"no answer within {self._timeout:g} s", hint="--engine-timeout gives it more")

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its pipe closed"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def fault(self, message: str, hint: str = "") -> EnvironmentFault:
        """Return an error about the program, with the last lines that it printed."""
        return EnvironmentFault(f"the engine's process: {message}", offenders=self.log().splitlines(), hint=hint)

    def _kill(self) -> None:
        """Kill the whole process group, since an engine starts processes of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
