"""Rows of token ids from texts: framed as the model reads them, concatenated, and cut to one length.

    documents --kinds in turns--> chat template, or plain [--> the model's own answers] --> ids --pack--> rows

A row begins with BOS, as served prompts do, and holds no other BOS: its activations are unlike any other token's. An
instruction-tuned model gets conversations in its chat frame; a base model gets their plain text. A picture becomes as
many placeholders as it has soft tokens, between the ids that open and close it; texts with pictures are taken as they
are, also where the model answers the others.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import Final, TypeAlias

from g4convert.calibration.documents import Document
from g4convert.calibration.pictures import Picture
from g4convert.calibration.rows import Shown, Written, pack
from g4convert.calibration.tokens import Tokens
from g4convert.conversion.pictures import Patches
from g4convert.errors import InputError
from g4convert.forward.chat_templates import rendered
from g4convert.forward.conversations import Frame
from g4convert.forward.patches import PictureCutter
from g4convert.planning.costs import ENDS, MOST_ROWS
from g4convert.quantities import plural, size

Answer: TypeAlias = Callable[[Sequence[Document], int], list[Written]]
"""A function that lets a model answer documents until it has the given number of ids; see `answers.answered`."""

_MOST_ANSWERED: Final = 65_536
"""Most ids of the model's own answers by default."""
_MOST_PIXELS: Final = 512 << 20
"""Most bytes of pictures: 270 of 280 soft tokens."""
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
    cutter: PictureCutter | None = None,
) -> Sampled:
    """Make rows of token ids from documents.

    Args:
        documents: documents to read; kinds take turns, and the seed orders the documents of a kind.
        frame: tokenizer and chat template of the checkpoint.
        samples: number of rows; None makes as many as the texts fill, at most `MOST_ROWS`.
        length: tokens of a row, BOS included.
        seed: seed of the order of documents.
        tokenizer: hash of the tokenizer, kept with the ids.
        answer: makes the model's own answers; None takes the answers in the documents.
        cutter: cuts the pictures of documents; None if none has any.

    Raises:
        InputError: too little text for `samples` rows, or for two; a picture that makes no patches, or more
            placeholders than a row holds; or more pictures than memory should hold.
    """
    body = length - len(frame.beginning)
    wanted = samples or MOST_ROWS
    order = [*_in_turns(documents, random.Random(seed))]  # noqa: S311 -- an order, no secret

    def written(one: Document) -> Written:
        return _encode(one, frame, cutter, body)

    if answer is None:
        texts = [*_check_memory(_until(map(written, order), wanted * body + _SPARE * length), body)]
    else:
        enough = samples * body + _SPARE * length if samples else min(wanted * body, _MOST_ANSWERED)
        share = enough // len({one.kind for one in order})
        shown = [*_check_memory(_until((written(one) for one in order if one.pictures), share), body)]
        answered = answer([one for one in order if not one.pictures], enough)
        texts = [*_spread(answered, shown)]
    packed = pack(texts, wanted, body, frame.beginning)
    if len(packed.ids) < (samples or 2):  # too few questions to keep their answers apart
        packed = pack([replace(one, whole=False) for one in texts], wanted, body, frame.beginning)
    rows = len(packed.ids)
    if rows < (samples or 2):
        raise InputError(
            f"too little text: {sum(len(one.ids) for one in texts):,} tokens, {(samples or 2) * body:,} needed for "
            f"{samples or 2} samples of {length:,}, and what judges is kept apart",
            hint=f"--samples {rows} is what they fill" if rows >= 2 else "more text, or a smaller --length",
        )
    return Sampled(Tokens(packed.ids, tokenizer, pictures=packed.pictures), packed.kinds, len(texts))


def _until(texts: Iterable[Written], enough: int) -> Iterator[Written]:
    """Yield texts until they have `enough` ids."""
    left = enough
    for one in texts:
        yield one
        left -= len(one.ids)
        if left <= 0:
            return


def _check_memory(texts: Iterable[Written], body: int) -> Iterator[Written]:
    """Yield texts; raise once their pictures are more than memory should hold."""
    nbytes = ids = 0
    for one in texts:
        nbytes += sum(shown.patches.pixels.nbytes for shown in one.shown)
        if nbytes > _MOST_PIXELS:
            raise InputError(
                f"pictures of over {size(_MOST_PIXELS)}, the most of a calibration file, in {ids // body:,} samples",
                hint=f"--samples {max(2, ids // body - _SPARE - 1)} takes fewer, or leave some out",
            )
        ids += len(one.ids)
        yield one


def _spread(texts: Sequence[Written], shown: Sequence[Written]) -> Iterator[Written]:
    """Yield texts in order, and those with pictures spread evenly among them."""
    places = [
        ((number + 1) / (len(several) + 1), one) for several in (texts, shown) for number, one in enumerate(several)
    ]
    yield from (one for _, one in sorted(places, key=itemgetter(0)))


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


def _encode(document: Document, frame: Frame, cutter: PictureCutter | None, body: int) -> Written:
    """Return a document as ids, with its frame and without BOS, and each picture as its placeholders.

    Raises:
        InputError: see `sample`.
    """
    ids = _ids(document, frame)
    if cutter is None:
        return Written(document.kind, tuple(ids))
    config, found, shown = frame.config, list[int](), list[Shown]()
    if ids.count(config.image_token_id) != len(document.pictures):
        text = f"{ids.count(config.image_token_id)} placeholders for {plural(len(document.pictures), 'picture')}"
        hint = "take the chat template that came with the model, and leave placeholders out of texts"
        raise InputError(f"{document.place or document.kind}: {text}, at {document.text[:60]!r}", hint=hint)
    pictures = iter(document.pictures)
    for id_ in ids:
        if id_ != config.image_token_id:
            found.append(id_)
            continue
        begin, patches = len(found), cut(next(pictures), cutter, document.place, body)
        found += [config.boi_token_id, *[id_] * patches.soft_tokens, config.eoi_token_id]
        shown.append(Shown(begin, len(found), patches))
    return Written(document.kind, tuple(found), shown=tuple(shown))


def cut(picture: Picture, cutter: PictureCutter, place: str, body: int) -> Patches:
    """Return the patches of a picture, whose placeholders a row of `body` ids holds.

    Raises:
        InputError: see `sample`.
    """
    named = f"{place}: picture {picture.name}" if place else f"picture {picture.name}"
    try:
        patches = cutter.cut(picture.load())
    except ValueError as error:
        raise InputError(f"{named}: {error}", hint="replace the file, or leave the line out") from error
    if patches.soft_tokens + ENDS > body:
        text = f"{named}: {patches.soft_tokens:,} soft tokens, and a row has room for {body - ENDS:,}"
        raise InputError(text, hint=f"--length {patches.soft_tokens + 4 * ENDS} at least")
    return patches


def _ids(document: Document, frame: Frame) -> list[int]:
    """Return the ids of a document, with its frame, without BOS, and with one placeholder for each picture."""
    if not frame.chat:
        ids = [*_plain(document, frame), *_ending(frame)]
    else:
        try:
            ids = frame.encode(rendered(frame.tokenizer, document.messages, asks=False))
        except InputError as error:
            roles = ", ".join(message["role"] for message in document.messages)
            raise InputError(
                f"{error.message}: at {document.text[:60]!r} ({roles})",
                hint="user and assistant take turns, the user first",
            ) from error
    begins = frame.beginning
    return [one for one in ids if one not in begins]


def _plain(document: Document, frame: Frame) -> list[int]:
    """Return the ids of a document's texts, joined by newlines, with one placeholder for each picture."""
    if not document.pictures:
        return frame.encode(document.text)
    ids: list[int] = []
    for part in document.parts:
        ids += [frame.config.image_token_id] if part["type"] == "image" else frame.encode(f"{part['text']}\n")
    return ids


def _ending(frame: Frame) -> list[int]:
    """Return the id that ends a text, or the ids of a blank line if the tokenizer has no such id."""
    end = frame.tokenizer.eos_token_id
    return frame.encode("\n\n") if end is None else [end]
