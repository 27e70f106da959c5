"""Client of SGLang's HTTP server, as of 0.5.23.

    GET  /model_info                                                   which model it serves
    POST /generate  {"input_ids", "return_logprob": true,
                     "logprob_start_len": 0, "top_logprobs_num": k,
                     "sampling_params": {"max_new_tokens": 1, ...}}
      -> {"meta_info": {"input_token_logprobs": [[null, id, null], [logprob, id, null], ...],
                        "input_top_logprobs":   [null, [[logprob, id, null], ...], ...]}}

The entry at a position is the log-probability of the token there, given the tokens before it; the first has none. A
server shows neither which parameters were filled nor its dtype. It takes pictures only in the form of its own
processor, so it is asked about text only.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, Final

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.verification.engine.answers import AnswerError, VocabularyError, parse_document, top_logits
from g4convert.verification.engine.http import Server
from g4convert.verification.engine.prompts import EngineRefusal, Prompt, Started, config_of, vocabulary
from g4convert.verification.logits.scores import TopLogits

_HINT: Final = "python -m sglang.launch_server --model-path OUT, then --engine-url http://HOST:30000"
_SHOWN: Final = 2000
"""Most bytes of an answer that a message quotes."""


class Sglang:
    """An SGLang server and the checkpoint that it should serve.

    Args:
        url: address of the server, without a path.
        checkpoint: directory of the checkpoint.
        timeout: seconds that an answer may take.
    """

    takes: frozenset[str] = frozenset()

    def __init__(self, url: str, checkpoint: Path, timeout: float) -> None:
        self._server = Server(url, timeout)
        self._checkpoint = checkpoint
        self._timeout = timeout
        self._top = 0
        self._vocab = 0

    def start(self, longest: int, top: int) -> Started:
        """Check that the server serves this checkpoint.

        Raises:
            UsageError: the server serves another checkpoint.
            EnvironmentFault: the server does not answer, not in time, or not as SGLang does.
        """
        del longest
        self._top = top
        config = config_of(self._checkpoint)
        self._vocab = vocabulary(config)
        served = self._json("/model_info")
        self._check_served(served, config)
        return Started(name=f"SGLang at {self._server.url}")

    def score(self, prompt: Prompt) -> TopLogits:
        """Return the log-probabilities after each scored row.

        Raises:
            EngineRefusal: the server refuses the prompt.
            UsageError: the answer names a token that is not in the checkpoint's vocabulary.
            EnvironmentFault: the server does not answer, not in time, or not as SGLang does.
        """
        question = {
            "input_ids": list(prompt.ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": self._top,
        }
        answer = self._json("/generate", question)
        try:
            meta = answer["meta_info"]
            true_logprobs, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
            if [entry[1] for entry in true_logprobs] != list(prompt.ids):
                raise self._fault("/generate", "log-probabilities of other tokens than were sent")
            ids = [[entry[1] for entry in top[row + 1]] for row in prompt.rows]
            logprobs = [[entry[0] for entry in top[row + 1]] for row in prompt.rows]
            true = [true_logprobs[row + 1][0] for row in prompt.rows]
            return top_logits(ids, logprobs, true, rows=len(prompt.rows), vocab=self._vocab)
        except VocabularyError as error:
            text = (
                f"{self._server.url} names token {error.token}; the vocabulary of {self._checkpoint} has {self._vocab}"
            )
            raise UsageError(text, hint="start the server with this checkpoint") from error
        except AnswerError as error:
            raise self._fault("/generate", str(error)) from error
        except (LookupError, TypeError) as error:
            raise self._fault("/generate", f"no log-probabilities of the prompt ({error!r})") from error

    def _check_served(self, served: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Raise if name or architecture differ; only names are compared, since paths may differ on the server."""
        own_names = {self._checkpoint.name, self._checkpoint.resolve().name}
        names = [str(served.get(key, "")) for key in ("model_path", "served_model_name")]
        wrong = []
        if not own_names & {PurePosixPath(name).name for name in names if name}:
            wrong.append(f"model_path {names[0][:200] or 'not told'}, expected {self._checkpoint}")
        wrong += [
            f"{key} {served[key]!s:.200}, expected {config[key]}"
            for key in ("model_type", "architectures")
            if served.get(key) is not None and served[key] != config.get(key)
        ]
        if wrong:
            hint = "start the server with this checkpoint"
            raise UsageError(f"{self._server.url} serves another model", offenders=wrong, hint=hint)

    def _json(self, path: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request, and return the reply as a JSON object."""
        try:
            reply = self._server.ask(path, None if question is None else json.dumps(question).encode())
            text = reply.body[:_SHOWN].decode(errors="replace").strip()
            if reply.status == HTTPStatus.BAD_REQUEST:
                raise EngineRefusal(text or reply.reason, "prompt")
            if reply.status != HTTPStatus.OK:
                raise self._fault(path, f"HTTP {reply.status} {reply.reason} {text}".strip())
            return parse_document(reply.body)
        except AnswerError as error:
            raise self._fault(path, str(error)) from error
        except TimeoutError as error:
            raise self._timed_out(path) from error
        except (HTTPException, OSError) as error:
            raise EnvironmentFault(f"{self._server.url}: no answer ({error})", hint=_HINT) from error

    def _timed_out(self, path: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._server.url}{path}: no answer within {self._timeout:g} s", hint="--engine-timeout gives it more"
        )

    def _fault(self, path: str, message: str) -> EnvironmentFault:
        hint = "is it an SGLang server (0.5.23 is known to suit)?"
        return EnvironmentFault(f"{self._server.url}{path}: {message}", hint=hint)


@contextmanager
def sglang(checkpoint: Path, *, url: str, timeout: float) -> Iterator[Sglang]:
    """Yield the client of a server that runs already; the server is neither started nor ended here.

    Args:
        checkpoint: directory of the checkpoint that the server should serve.
        url: address of the server.
        timeout: seconds that each answer may take.

    Raises:
        UsageError: the URL is not of the form `http://HOST:PORT`.
    """
    yield Sglang(url, checkpoint, timeout)
