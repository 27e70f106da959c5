"""SGLang's side of level `engine`: a local server that speaks its protocol, as of 0.5.23, with a model behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from helpers.conversions import quantized
from helpers.served import logits_of

from g4convert.errors import EnvironmentFault, UsageError
from g4convert.forward.load import load
from g4convert.progress import Progress
from g4convert.report import Severity
from g4convert.verification.engine.level import check_engine, score_some_tokens
from g4convert.verification.engine.prompts import EngineRefusal, Prompt
from g4convert.verification.engine.sglang import Sglang, sglang
from g4convert.verification.probes.suite import make_probes

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoints

    from g4convert.forward.models import Model

Answer = Callable[[dict[str, Any]], Any]
PROMPT = Prompt((2, 5, 9), (0, 1), ())


@pytest.fixture(scope="module")
def out(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion with pictures."""
    output = tmp_path_factory.mktemp("served") / "tiny-W4A16"
    quantized(checkpoints("dense"), output)
    return output


@pytest.fixture(scope="module")
def model(out: Path) -> Model:
    """Model of the server and the reference."""
    return load(out, packed=False)


def info(out: Path, **other: object) -> dict[str, Any]:
    """Return the /model_info of this checkpoint on another machine."""
    config = json.loads((out / "config.json").read_text())
    served = {key: config[key] for key in ("model_type", "architectures")}
    return {"model_path": f"/models/{out.name}", "is_generation": True, **served, **other}


def generate(model: Model) -> Answer:
    """Answers to /generate, in the form of `add_logprob_to_meta_info`."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        assert (asked["return_logprob"], asked["logprob_start_len"]) == (True, 0)
        ids = asked["input_ids"]
        logprobs = logits_of(model, ids, []).log_softmax(-1)
        top = logprobs.topk(asked["top_logprobs_num"])
        own = [[None, ids[0], None]]
        own += [[float(row[id_]), id_, None] for row, id_ in zip(logprobs, ids[1:], strict=False)]
        ranked = [
            [[value, id_, None] for value, id_ in zip(values, best, strict=True)]
            for values, best in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        meta = {"prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": [None, *ranked[:-1]]}
        return {"text": "", "output_ids": [1], "meta_info": meta}

    return answer


@contextmanager
def server(answers: dict[str, Any]) -> Iterator[str]:
    """A server; an answer is JSON, bytes, a (status, bytes), or a function of the question."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, asked: dict[str, Any]) -> None:
            given = answers.get(self.path, (404, b"not found"))
            given = given(asked) if callable(given) else given
            status, body = given if isinstance(given, tuple) else (200, given)
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # who asked has not waited
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@contextmanager
def asked(out: Path, answers: dict[str, Any], *, timeout: float = 20) -> Iterator[Sglang]:
    with server(answers) as url, sglang(out, url=f"{url}/", timeout=timeout) as engine:
        yield engine


def test_a_server_with_the_right_model_passes(out: Path, model: Model) -> None:
    probes = [score_some_tokens(one) for one in make_probes(model, out, kinds=("prose", "batch", "image"), tokens=1)]
    with asked(out, {"/model_info": info(out), "/generate": generate(model)}) as engine:
        findings = check_engine(engine, model, probes, progress=Progress()).findings
    assert not [one for one in findings if one.severity in {Severity.FAIL, Severity.WARN, Severity.INCONCLUSIVE}]
    passed = [one.subject.partition(" ")[0] for one in findings if one.code == "engine.logprobs"]
    assert passed == ["all", "prose", "batch"]
    told = {one.code: one.found for one in findings if one.severity is Severity.INFO and "image" in one.found}
    assert told == {"engine.coverage": "image: this engine is not given any"}
    assert next(one for one in findings if one.code == "engine.load").severity is Severity.INFO


def test_a_server_with_other_numbers_fails(out: Path, model: Model) -> None:
    other = load(out, packed=False)
    other.get_decoder().layers[1].layer_scalar.fill_(1)
    probes = [score_some_tokens(one) for one in make_probes(model, out, kinds=("prose",), tokens=1)]
    with asked(out, {"/model_info": info(out), "/generate": generate(other)}) as engine:
        findings = check_engine(engine, model, probes, progress=Progress()).findings
    assert "engine.logprobs" in {one.code for one in findings if one.severity is Severity.FAIL}


@pytest.mark.parametrize(
    "other",
    [{"model_path": "google/gemma-3-4b"}, {"model_type": "gemma3"}, {"architectures": ["Gemma3ForCausalLM"]}],
    ids=lambda one: next(iter(one)),
)
def test_another_model_is_refused(other: dict[str, Any], out: Path) -> None:
    with (
        asked(out, {"/model_info": info(out, **other)}) as engine,
        pytest.raises(UsageError, match="another model") as e,
    ):
        engine.start(9, 4)
    assert any(next(iter(other)) in line for line in e.value.offenders)


def test_a_token_beyond_the_vocabulary_is_refused(out: Path, model: Model) -> None:
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = generate(model)(question)
        found["meta_info"]["input_top_logprobs"][1][0][1] = 512
        return found

    with asked(out, {"/model_info": info(out), "/generate": answer}) as engine:
        engine.start(9, 4)
        with pytest.raises(UsageError, match=r"names token 512; the vocabulary of .* has 512"):
            engine.score(PROMPT)


def without(key: str) -> Answer:
    return lambda _: {"meta_info": {key: [[None, 2, None]]}}


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/model_info", b"<html>", "no JSON"),
        ("/model_info", [1], "no JSON object"),
        ("/model_info", (404, b"not found"), "HTTP 404"),
        ("/generate", (500, b"CUDA error"), r"HTTP 500 .* CUDA error"),
        ("/generate", b"", "no JSON"),
        ("/generate", {"text": ""}, "no log-probabilities of the prompt"),
        ("/generate", without("input_token_logprobs"), "no log-probabilities of the prompt"),
        (
            "/generate",
            lambda _: {"meta_info": {"input_token_logprobs": [[None, 7, None]], "input_top_logprobs": []}},
            "other tokens",
        ),
    ],
)
def test_answers_of_something_else_are_faults(path: str, answer: Any, message: str, out: Path) -> None:  # noqa: ANN401
    answers = {"/model_info": info(out)} | {path: answer}
    with pytest.raises(EnvironmentFault, match=message), asked(out, answers) as engine:  # noqa: PT012 -- either of two
        engine.start(9, 4)
        engine.score(PROMPT)


def test_a_prompt_that_the_server_refuses_is_told_in_its_words(out: Path) -> None:
    answers = {"/model_info": info(out), "/generate": (400, b'{"error": "longer than the context length"}')}
    with asked(out, answers) as engine:
        engine.start(9, 4)
        with pytest.raises(EngineRefusal, match="longer than the context length"):
            engine.score(PROMPT)


def test_a_slow_server_ends_in_time(out: Path) -> None:
    given_up = threading.Event()
    with asked(out, {"/model_info": lambda _: given_up.wait(60)}, timeout=0.3) as engine:
        with pytest.raises(EnvironmentFault, match=r"no answer within 0.3 s"):
            engine.start(9, 4)
        given_up.set()  # the server has not answered yet


def test_no_server_is_told_with_the_remedy(out: Path) -> None:
    with server({}) as url:
        pass
    with sglang(out, url=url, timeout=5) as engine, pytest.raises(EnvironmentFault, match="refused") as fault:
        engine.start(9, 4)
    assert "launch_server" in fault.value.hint


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "file:///etc/passwd", "http://"])
def test_what_is_no_address_is_refused(url: str, out: Path) -> None:
    with pytest.raises(UsageError, match="expected http"), sglang(out, url=url, timeout=5):
        pass
