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


class StartAnswer(Started):
    """First answer of `vllm_child`."""

    event: Literal["started", "failed"]
    kind: str = ""
    message: str = ""
    phase: str


def parse_document(content: bytes) -> dict[str, Any]:
    """Parse an answer.

    Args:
        content: the answer's bytes.

    Raises:
        AnswerError: the answer is no JSON object, or is nested too deep.
    """
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise AnswerError("JSON that is nested too deep to be read") from error
    except ValueError as error:
        raise AnswerError(f"no JSON: {content[:80]!r}") from error
    if not isinstance(value, dict):
        raise AnswerError(f"no JSON object: {content[:80]!r}")
    return value


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
        tables = torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float32)
        true_logprob = torch.tensor(true, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise AnswerError(f"log-probabilities that are no table of numbers ({error})") from error
    tokens, table = tables
    if table.shape != tokens.shape or table.ndim != 2 or not table.numel() or len(table) != rows:
        raise AnswerError(f"ids {[*tokens.shape]} and log-probabilities {[*table.shape]}, expected {rows} rows of both")
    if true_logprob.shape != (rows,):
        raise AnswerError(f"{[*true_logprob.shape]} log-probabilities of the next tokens, expected [{rows}]")
    if tokens.dtype is not torch.int64:
        raise AnswerError("ids of tokens that are no whole numbers")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab:
        raise VocabularyError(int(tokens.min()) if int(tokens.min()) < 0 else int(tokens.max()), vocab)
    return TopLogits(tokens, table, torch.zeros(rows), true_logprob)
