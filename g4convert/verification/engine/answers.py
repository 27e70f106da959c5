"""Reader of an engine's answers, as untrusted input: checks size, depth, shapes and values.

    bytes --document--> a JSON object --top_logits--> TopLogits of the requested rows

An engine is a foreign program, and a server may be anybody's. A log-probability of nan is kept and judged later; a
malformed answer raises `AnswerError` with the reason.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch

from g4convert.verification.engine.prompts import Started
from g4convert.verification.logits.scores import TopLogits

MOST_ANSWER: Final = 64 << 20
"""Most bytes of an answer, 64 MiB; an answer with 64 log-probabilities for each of 20,000 tokens is smaller."""


class AnswerError(ValueError):
    """Raised when an engine's answer is malformed; the message says why."""


class OversizeError(AnswerError):
    """Raised when an answer is larger than `MOST_ANSWER`."""

    def __init__(self) -> None:
        super().__init__(f"an answer over {MOST_ANSWER >> 20} MiB, the most that is read")


class VocabularyError(AnswerError):
    """Raised when an answer names a token that is not in the model's vocabulary."""

    def __init__(self, token: int, vocab: int) -> None:
        super().__init__(f"token {token}; the vocabulary has {vocab}")
        self.token = token


class Told(Started):
    """First answer of `vllm_child`."""

    event: Literal["started", "failed"]
    kind: str = ""
    message: str = ""
    phase: str


def document(content: bytes) -> dict[str, Any]:
    """Parse an answer.

    Args:
        content: the answer's bytes.

    Raises:
        AnswerError: the answer is no JSON object, or is nested too deep.
    """
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise AnswerError("JSON that is nested too deep to be read") from error
    except ValueError as error:
        raise AnswerError(f"no JSON: {content[:80]!r}") from error
    if not isinstance(found, dict):
        raise AnswerError(f"no JSON object: {content[:80]!r}")
    return found


def top_logits(ids: Sequence[Any], logprobs: Sequence[Any], true: Sequence[Any], *, rows: int, vocab: int) -> TopLogits:
    """Return an answer as tensors.

    Args:
        ids: ids of the likeliest tokens of each row.
        logprobs: log-probabilities of these tokens.
        true: log-probability of the next token of each row.
        rows: number of requested rows.
        vocab: size of the vocabulary.

    Raises:
        AnswerError: the number of rows is wrong, rows differ in length, or values are not numbers of the right type.
        VocabularyError: an id is not in the vocabulary.
    """
    try:
        found = torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float32)
        next_one = torch.tensor(true, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AnswerError(f"log-probabilities that are no table of numbers ({error})") from error
    named, known = found
    if known.shape != named.shape or known.ndim != 2 or not known.numel() or len(known) != rows:
        raise AnswerError(f"ids {[*named.shape]} and log-probabilities {[*known.shape]}, expected {rows} rows of both")
    if next_one.shape != (rows,):
        raise AnswerError(f"{[*next_one.shape]} log-probabilities of the next tokens, expected [{rows}]")
    if named.dtype is not torch.int64:
        raise AnswerError("ids of tokens that are no whole numbers")
    if int(named.min()) < 0 or int(named.max()) >= vocab:
        raise VocabularyError(int(named.min()) if int(named.min()) < 0 else int(named.max()), vocab)
    return TopLogits(named, known, torch.zeros(rows), next_one)
