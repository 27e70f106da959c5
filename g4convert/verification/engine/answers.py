"""Reads what an engine answers and believes none of it: sizes, depth, shapes, and values.

    bytes --document--> a JSON object --top_logits--> TopLogits of the rows that were asked for

An engine is somebody else's program, and a server may be anybody's. What is not a number stays what it is (nan) and is
judged; what is no answer at all raises `AnswerError`, with the reason.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from g4convert.verification.logits.scores import TopLogits

__all__ = ["MOST_ANSWER", "AnswerError", "OversizeError", "Told", "VocabularyError", "document", "top_logits"]

MOST_ANSWER: Final = 64 << 20
"""Bytes of an answer: 64 MiB; 64 log-probabilities of 20,000 tokens have less."""


class AnswerError(ValueError):
    """Raised when an engine's answer is none; the message says why."""


class OversizeError(AnswerError):
    """Raised when an answer is larger than any that is read."""

    def __init__(self) -> None:
        super().__init__(f"an answer over {MOST_ANSWER >> 20} MiB, the most that is read")


class VocabularyError(AnswerError):
    """Raised when an answer names a token that the model has not.

    Args:
        token: its number.
        vocab: size of the model's vocabulary.
    """

    def __init__(self, token: int, vocab: int) -> None:
        super().__init__(f"token {token}; the vocabulary has {vocab}")
        self.token = token


class _Unfilled(BaseModel):
    """A parameter that no tensor reached, as the child of vLLM tells of it."""

    name: str
    share: float = Field(ge=0, le=1)


class Told(BaseModel):
    """The first answer of the child of vLLM; see `prompts.Started`."""

    model_config = ConfigDict(frozen=True, strict=True)

    event: Literal["started", "failed"]
    kind: str = ""
    message: str = ""
    phase: str
    version: str = ""
    device: str = ""
    dtype: str = ""
    decodes: bool = False
    causal: bool = False
    parameters: int = Field(ge=0)
    unwatched: int = Field(ge=0)
    unfilled: list[_Unfilled]
    supplied: list[str]
    mended: list[str]


def document(content: bytes) -> dict[str, Any]:
    """Parse an answer.

    Args:
        content: as it came.

    Raises:
        AnswerError: it is no JSON object, or nested too deep.
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
    """Tensors of an answer.

    Args:
        ids: of each row the likeliest tokens.
        logprobs: of each row theirs.
        true: of each row that of the next token.
        rows: how many were asked for.
        vocab: size of the vocabulary.

    Raises:
        AnswerError: other rows than were asked for, of several lengths, or values that are no such numbers.
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
