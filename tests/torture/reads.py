"""Rounds of reading: prompts, stored references and replies of a server are damaged, and read in this process.

What is read has to be a refusal or to be used; a stored reference is never used with another byte than was stored.
"""

import json
import random
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from damage import damage, damage_text

from g4convert.errors import G4Error
from g4convert.forward.conversations import read_prompts
from g4convert.verification.engine.http import Reply, Server
from g4convert.verification.engine.prompts import EngineRefusal, Prompt
from g4convert.verification.engine.sglang import Sglang
from g4convert.verification.logits.capture import StoredReference

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reads"]

_PROMPTS = "".join(
    json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "So."}]}) + "\n"
    for text in ("Why is the sky blue?", "Пиши.", "1 + 1")
)
_PROMPT = Prompt((2, 5, 9), (0, 1), ())
_ROW = [[-0.5, 5, "a"], [-1.5, 7, "b"]]
_REPLY = {
    "text": "x",
    "meta_info": {
        "input_token_logprobs": [[None, 2, None], [-0.5, 5, None], [-2.5, 9, None]],
        "input_top_logprobs": [None, _ROW, _ROW],
    },
}


class Reads:
    """Files and answers that come from elsewhere.

    Args:
        source: a checkpoint.
        reference: what `g4convert reference` stored of it.
        place: a directory to make.
        chance: decides everything.
    """

    def __init__(self, source: Path, reference: Path, place: Path, chance: random.Random) -> None:
        self._source, self._stored, self._place, self._chance = source, reference.read_bytes(), place, chance
        self._ended: dict[str, Counter[str]] = {}
        self._rounds = 0
        self.faults: list[str] = []
        place.mkdir()
        self._kinds: dict[str, Callable[[], object]] = {
            "prompts": self._prompts,
            "stored reference": self._reference,
            "reply": self._reply,
        }

    def round(self) -> None:
        """Damage and read something of each kind."""
        self._rounds += 1
        for name, read in self._kinds.items():
            try:
                read()
                how = "used"
            except (G4Error, EngineRefusal):
                how = "refused"
            except Exception as error:  # noqa: BLE001 -- what is looked for
                how = "a crash"
                self.faults.append(f"round {self._rounds}: {name}: {type(error).__name__}: {error!s:.200}")
            self._ended.setdefault(name, Counter())[how] += 1

    def lines(self) -> list[str]:
        """Describe the outcome, for people."""
        ends = [f"{name}: {dict(sorted(ended.items()))}" for name, ended in self._ended.items()]
        return [f"{self._rounds} rounds of reading", *ends, *(f"WRONG: {fault}" for fault in self.faults)]

    def _prompts(self) -> None:
        path = self._place / "prompts.jsonl"
        path.unlink(missing_ok=True)
        path.write_text(damage_text(_PROMPTS, self._chance), encoding="utf-8", errors="surrogatepass")
        if self._chance.random() < 0.3:
            damage(path, self._chance)
        read_prompts(path, chat=True)

    def _reference(self) -> None:
        path = self._place / "reference.safetensors"
        path.unlink(missing_ok=True)
        path.write_bytes(self._stored)
        damage(path, self._chance)
        StoredReference.open(path)
        if path.read_bytes() != self._stored:
            self.faults.append(f"round {self._rounds}: a damaged reference is used")

    def _reply(self) -> None:
        body = damage_text(json.dumps(_REPLY), self._chance).encode(errors="replace")
        status = self._chance.choice([HTTPStatus.OK] * 8 + [HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND])
        answer = Reply(status, status.phrase, body)
        engine = Sglang("http://127.0.0.1:1", self._source, 1)
        with patch.object(Server, "ask", lambda *_: answer):
            if self._chance.random() < 0.3:
                engine.start(3, 2)
            else:
                with patch.object(engine, "_vocab", 16):
                    engine.score(_PROMPT)
