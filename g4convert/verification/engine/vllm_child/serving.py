"""Questions and replies in JSON lines, on two pipes of their own: vLLM prints freely on stdout and stderr.

{"do": "start", "model", "dtype", "length", "top"}  ->  {"event": "started", ...} or {"event": "failed", ...}
{"do": "score", "ids", "rows", "media"}             ->  {"event": "scored", "ids", "logprobs", "true"} or "refused"
end of the pipe                                     ->  the program ends
"""

import json
import traceback
from dataclasses import asdict
from typing import Any

from .engine import Engine
from .state import State


def serve(questions: Any, replies: Any) -> None:
    """Answer questions until the pipe ends or the start fails."""

    def reply(event: str, **content: Any) -> None:
        replies.write(json.dumps({"event": event, **content}) + "\n")
        replies.flush()

    state = State()
    engine: Engine | None = None
    for line in questions:
        asked = json.loads(line)
        try:
            if engine is None:
                engine = Engine(asked, state)
                reply("started", **_facts(engine), **asdict(state))
            else:
                reply("scored", **_rows_json(engine.score(asked), asked))
        except Exception as error:  # noqa: BLE001 -- whatever vLLM raises is reported to the parent
            traceback.print_exc()
            problem = {"kind": type(error).__name__, "message": str(error)}
            if engine is None:
                reply("failed", **problem, **asdict(state))
                return
            reply("refused", **problem)


def _facts(engine: Engine) -> dict[str, Any]:
    return {name: getattr(engine, name) for name in ("name", "device", "dtype", "decodes", "causal")}


def _rows_json(rows: list[dict[int, Any]], asked: dict[str, Any]) -> dict[str, Any]:
    """Return ids and log-probabilities of the likeliest tokens of each row, and that of the next token."""
    true = [row[asked["ids"][place + 1]].logprob for row, place in zip(rows, asked["rows"], strict=True)]
    ranked = [sorted(row.items(), key=lambda one: -one[1].logprob) for row in rows]
    width = min(map(len, ranked))  # a row is one longer where the next token is not among the likeliest
    ids = [[id_ for id_, _ in row[:width]] for row in ranked]
    logprobs = [[one.logprob for _, one in row[:width]] for row in ranked]
    return {"ids": ids, "logprobs": logprobs, "true": true}
