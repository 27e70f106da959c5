"""SGLang through its HTTP server, as of 0.5.23.

    GET  /model_info                                                   which model it serves
    POST /generate  {"input_ids", "return_logprob": true,
                     "logprob_start_len": 0, "top_logprobs_num": k,
                     "sampling_params": {"max_new_tokens": 1, ...}}
      -> {"meta_info": {"input_token_logprobs": [[null, id, null], [logprob, id, null], ...],
                        "input_top_logprobs":   [null, [[logprob, id, null], ...], ...]}}

The entry at a place is about the token that stands there, given those before it; the first has none. A server shows
neither which parameters were filled nor its dtype, and takes pictures in its own processor's form only, so text is
what it is asked.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import torch

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.verification.engine.prompts import Prompt, Refused, Started
from g4convert.verification.logits.scores import TopLogits

__all__ = ["Sglang", "sglang"]

_HINT: Final = "python -m sglang.launch_server --model-path OUT, then --engine-url http://HOST:30000"
_OPENER: Final = build_opener(ProxyHandler({}))
"""Without the proxy of the environment: the server is a neighbour."""


class Sglang:
    """A server and the checkpoint it should serve.

    Args:
        url: address of the server, without a path.
        checkpoint: the directory.
        timeout: seconds that an answer may take.
    """

    takes: frozenset[str] = frozenset()

    def __init__(self, url: str, checkpoint: Path, timeout: float) -> None:
        self._url = url.rstrip("/")
        self._checkpoint = checkpoint
        self._timeout = timeout
        self._top = 0
        self._vocab = 0

    def start(self, longest: int, top: int) -> Started:
        """Make sure that it serves this checkpoint.

        Raises:
            UsageError: it serves another one.
            EnvironmentFault: it does not answer, not in time, or not as SGLang does.
        """
        del longest
        self._top = top
        config = json.loads((self._checkpoint / "config.json").read_bytes())
        self._vocab = config.get("text_config", config)["vocab_size"]
        served = self._json("/model_info")
        self._must_be_ours(served, config)
        return Started(f"SGLang at {self._url}")

    def score(self, prompt: Prompt) -> TopLogits:
        """Log-probabilities after each row that counts.

        Raises:
            Refused: it takes no such prompt.
            EnvironmentFault: it does not answer, not in time, or not as SGLang does.
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
            own, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
            if [entry[1] for entry in own] != list(prompt.ids):
                raise self._fault("/generate", "log-probabilities of other tokens than were sent")
            rows = [[(entry[1], float(entry[0])) for entry in top[row + 1]] for row in prompt.rows]
            true = [float(own[row + 1][0]) for row in prompt.rows]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._fault("/generate", f"no log-probabilities of the prompt ({error!r})") from error
        ids = torch.tensor([[id_ for id_, _ in row] for row in rows])
        if int(ids.max()) >= self._vocab:
            raise UsageError(
                f"{self._url} names token {int(ids.max())}; the vocabulary of {self._checkpoint} has {self._vocab}",
                hint="start the server with this checkpoint",
            )
        logprobs = torch.tensor([[logprob for _, logprob in row] for row in rows])
        return TopLogits(ids, logprobs, torch.zeros(len(rows)), torch.tensor(true))

    def _must_be_ours(self, served: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Compare the name, since a server may see the directory under another path, and the architecture."""
        ours = {self._checkpoint.name, self._checkpoint.resolve().name}
        names = [str(served.get(key, "")) for key in ("model_path", "served_model_name")]
        wrong = []
        if not ours & {PurePosixPath(name).name for name in names if name}:
            wrong.append(f"model_path {names[0] or 'not told'}, expected {self._checkpoint}")
        wrong += [
            f"{key} {served[key]}, expected {config[key]}"
            for key in ("model_type", "architectures")
            if served.get(key) is not None and served[key] != config.get(key)
        ]
        if wrong:
            hint = "start the server with this checkpoint"
            raise UsageError(f"{self._url} serves another model", offenders=wrong, hint=hint)

    def _json(self, path: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask, and read the answer as a JSON object."""
        body = None if question is None else json.dumps(question).encode()
        asked = Request(self._url + path, body, {"Content-Type": "application/json"})  # noqa: S310 -- http(s) only
        try:
            with _OPENER.open(asked, timeout=self._timeout) as reply:
                content = reply.read()
        except HTTPError as error:
            text = error.read(2000).decode(errors="replace").strip()
            if error.code == 400:  # Bad Request
                raise Refused(text or error.reason, "prompt") from error
            raise self._fault(path, f"HTTP {error.code} {error.reason} {text}".strip()) from error
        except TimeoutError as error:
            raise self._late(path) from error
        except (URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._late(path) from error
            raise EnvironmentFault(f"{self._url}: no answer ({reason})", hint=_HINT) from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise self._fault(path, f"no JSON: {content[:80]!r}") from error
        if not isinstance(answer, dict):
            raise self._fault(path, f"no JSON object: {content[:80]!r}")
        return answer

    def _late(self, path: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._url}{path}: no answer within {self._timeout:g} s", hint="--engine-timeout gives it more"
        )

    def _fault(self, path: str, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._url}{path}: {what}", hint="is it an SGLang server (0.5.23 is known to suit)?")


@contextmanager
def sglang(checkpoint: Path, *, url: str, timeout: float) -> Iterator[Sglang]:
    """A server that runs already; nothing of it is started or ended here.

    Args:
        checkpoint: the directory that it should serve.
        url: address of the server.
        timeout: seconds that each answer may take.

    Raises:
        UsageError: no such kind of address.
    """
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise UsageError(f"--engine-url {url}: expected http://HOST:PORT")
    yield Sglang(url, checkpoint, timeout)
