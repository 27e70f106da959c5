"""Rows of token ids from texts: framed as the model reads them, concatenated, and cut to one length.

    documents --kinds in turns--> chat template, or plain [--> the model's own answers] --> ids --pack--> rows

A row begins with BOS, as served prompts do, and holds no other BOS: its activations are unlike any other token's. An
instruction-tuned model gets conversations in its chat frame; a base model gets their plain text.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeAlias

from g4convert.calibration.documents import Document
from g4convert.calibration.rows import Written, pack
from g4convert.calibration.tokens import Tokens
from g4convert.errors import InputError
from g4convert.forward.chat_templates import rendered
from g4convert.forward.conversations import Frame

Answer: TypeAlias = Callable[[Sequence[Document], int], list[Written]]
"""A function that lets a model answer documents until it has the given number of ids; see `answers.answered`."""

MOST_SAMPLES: Final = 128
"""Default number of rows, if the texts are long enough."""
_MOST_ANSWERED: Final = 65_536
"""Most ids of the model's own answers by default."""
_SPARE: Final = 2
"""Spare rows of text: judging and calibrating side may each leave an unfilled row."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rows of token ids and the texts behind them.

    Args:
        tokens: the rows.
        kinds: number of ids by kind of text.
        documents: number of documents that were turned into ids.
    """

    tokens: Tokens
    kinds: Mapping[str, int]
    documents: int


def sample(  # noqa: PLR0913 -- the choices of a sample
    documents: Sequence[Document],
    frame: Frame,
    *,
    samples: int | None,
    length: int,
    seed: int,
    tokenizer: str,
    answer: Answer | None = None,
) -> Sampled:
    """Make rows of token ids from documents.

    Args:
        documents: documents to read; kinds take turns, and the seed orders the documents of a kind.
        frame: tokenizer and chat template of the checkpoint.
        samples: number of rows; None makes as many as the texts fill, at most `MOST_SAMPLES`.
        length: tokens of a row, BOS included.
        seed: seed of the order of documents.
        tokenizer: hash of the tokenizer, kept with the ids.
        answer: makes the model's own answers; None takes the answers in the documents.

    Raises:
        InputError: too little text for `samples` rows, or for two.
    """
    bos = frame.tokenizer.bos_token_id
    body = length - (bos is not None)
    wanted = samples or MOST_SAMPLES
    order = [*_in_turns(documents, random.Random(seed))]  # noqa: S311 -- an order, no secret
    if answer is None:
        texts = [*_until(((one.kind, _ids(one, frame, bos)) for one in order), wanted * body + _SPARE * length)]
    else:
        texts = answer(order, samples * body + _SPARE * length if samples else min(wanted * body, _MOST_ANSWERED))
    packed = pack(texts, wanted, body, bos)
    if len(packed.ids) < (samples or 2):  # too few questions to keep their answers apart
        packed = pack([replace(one, whole=False) for one in texts], wanted, body, bos)
    rows = len(packed.ids)
    if rows < (samples or 2):
        raise InputError(
            f"too little text: {sum(len(one.ids) for one in texts):,} tokens, {(samples or 2) * body:,} needed for "
            f"{samples or 2} samples of {length:,}, and what judges is kept apart",
            hint=f"--samples {rows} is what they fill" if rows >= 2 else "more text, or a smaller --length",
        )
    return Sampled(Tokens(packed.ids, tokenizer), packed.kinds, len(texts))


def _until(texts: Iterable[tuple[str, list[int]]], enough: int) -> Iterator[Written]:
    """Yield texts until they have `enough` ids."""
    left = enough
    for kind, ids in texts:
        if left <= 0:
            return
        yield Written(kind, tuple(ids))
        left -= len(ids)


def _in_turns(documents: Sequence[Document], order: random.Random) -> Iterator[Document]:
    """Yield documents, shuffled within each kind; the kinds take turns until all are used up."""
    by_kind: dict[str, list[Document]] = {}
    for document in documents:
        by_kind.setdefault(document.kind, []).append(document)
    for alike in by_kind.values():
        order.shuffle(alike)
    queues = [iter(alike) for alike in by_kind.values()]
    while queues:
        taken = [(queue, [*islice(queue, 1)]) for queue in queues]
        yield from (one for _, found in taken for one in found)
        queues = [queue for queue, found in taken if found]


def _ids(document: Document, frame: Frame, bos: int | None) -> list[int]:
    """Return the ids of a document, with its frame and without BOS."""
    if not frame.chat:
        ids = [*frame.encode(document.text), *_ending(frame)]
    else:
        try:
            ids = frame.encode(rendered(frame.tokenizer, document.messages, asks=False))
        except InputError as error:
            roles = ", ".join(message["role"] for message in document.messages)
            raise InputError(
                f"{error.message}: at {document.text[:60]!r} ({roles})",
                hint="user and assistant take turns, the user first",
            ) from error
    return [one for one in ids if one != bos]


def _ending(frame: Frame) -> list[int]:
    """Return the id that ends a text, or the ids of a blank line if the tokenizer has no such id."""
    end = frame.tokenizer.eos_token_id
    return frame.encode("\n\n") if end is None else [end]
