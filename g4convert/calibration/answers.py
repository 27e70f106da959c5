"""The model's own answers to the questions in texts: the tokens that it will meet when served calibrate best.

    questions --batches, temperature 1, a seed--> answers --repeated with new draws--> enough ids

A base model continues the beginnings of texts. Each id of an answer costs a forward, so by default a model answers only
if it fits the memory and runs on a GPU or is small.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from g4convert.calibration.documents import Document
from g4convert.calibration.rows import Written
from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import is_roomy, threads_for
from g4convert.errors import UsageError
from g4convert.forward.conversations import Frame
from g4convert.forward.decoding import draw
from g4convert.forward.models import Model
from g4convert.progress import Progress

_BATCH: Final = 16
"""Most questions of a batch."""
_PADDED: Final = 8192
"""Most ids of a batch of several questions, padding included."""
_BEGINNING: Final = 32
"""Leading ids of a text that a base model continues."""
_LONGEST: Final = 256
"""Most ids of an answer."""
_SMALL: Final = 1 << 30
"""Most bytes of weights for which a model answers on a CPU by default."""
_TURNS: Final = 16
"""Most answers to each question."""


@dataclass(frozen=True, slots=True)
class Own:
    """Decision on whether a model answers the questions itself.

    Args:
        answers: whether the model answers.
        why: reason in words, for the report.
    """

    answers: bool
    why: str


def should_answer(checkpoint: Checkpoint, device: torch.device, *, chat: bool, asked: bool | None) -> Own:
    """Decide whether a model answers the questions itself.

    Args:
        checkpoint: the model.
        device: device that would run the model.
        chat: whether the model has a chat template.
        asked: the user's choice; None decides by the model's size and kind.

    Raises:
        UsageError: the user asks for answers, but the model does not fit the memory.
    """
    nbytes = sum(info.nbytes for info in checkpoint.infos.values())
    fits = is_roomy(nbytes, device)
    if asked and not fits:
        raise UsageError(
            f"--answers: {nbytes / 1e9:.1f} GB of weights do not fit the free memory of {device}",
            hint="--no-answers takes the texts as they are",
        )
    if asked is False:
        return Own(answers=False, why="taken as they are")
    if asked or (chat and fits and (device.type == "cuda" or nbytes <= _SMALL)):
        return Own(answers=True, why=f"{'answered' if chat else 'continued'} by the model, temperature 1")
    if not chat:
        return Own(answers=False, why="taken as they are, as this is a base model")
    reason = (
        f"{nbytes / 1e9:.1f} GB would answer slowly on the {device}" if fits else "the model does not fit in memory"
    )
    return Own(answers=False, why=f"taken as they are: {reason}")


def answer_questions(  # noqa: PLR0913 -- a model, its words, and how much
    model: Model, frame: Frame, documents: Sequence[Document], *, enough: int, seed: int, progress: Progress
) -> list[Written]:
    """Let a model answer the questions of documents, several times if need be.

    Args:
        model: resident model.
        frame: tokenizer and chat template of the model.
        documents: documents, in the order in which they are packed.
        enough: number of ids after which no further question is asked.
        seed: seed of the draws.
        progress: told of ids.

    Returns:
        One text for each asked document: its question with every answer.

    Raises:
        GateError: a logit is not finite.
    """
    questions = [*_enough_questions([_question(document, frame) for document in documents], enough)]
    said: list[list[int]] = [[] for _ in questions]
    batches = [*_batches([len(question) for question in questions])]
    generator, begins = torch.Generator().manual_seed(seed), frame.beginning
    progress.step("answers", enough, "ids")
    with threads_for(model):
        for batch in batches * _TURNS:
            if sum(map(len, said)) >= enough:
                break
            asked = [questions[number] for number in batch]
            drawn = draw(model, asked, max_new_tokens=_LONGEST, generator=generator)
            for number, question, answer in zip(batch, asked, drawn, strict=True):
                whole = [id_ for id_ in (*question, *answer) if id_ not in begins]
                said[number] += whole
                progress.tick(len(whole))
    return [Written(one.kind, tuple(ids), whole=True) for one, ids in zip(documents, said, strict=False) if ids]


def _enough_questions(questions: Iterable[list[int]], enough: int) -> Iterator[list[int]]:
    """Yield questions, in order, until they and answers of `_LONGEST` / 2 ids have `enough` ids; at least a batch."""
    left = enough
    for number, question in enumerate(questions):
        if left > 0 or number < _BATCH:
            yield question
        left -= len(question) + _LONGEST // 2


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield batches of question numbers; the questions of a batch have similar lengths."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda one: lengths[one]):
        if len(batch) == _BATCH or (batch and lengths[number] * (len(batch) + 1) > _PADDED):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _question(document: Document, frame: Frame) -> list[int]:
    """Return the ids before the model's answer; for a base model the beginning of the text."""
    if frame.chat:
        messages = [*document.messages]
        if len(messages) > 1 and messages[-1]["role"] in {"assistant", "model"}:
            messages.pop()
        return frame.question(messages)
    return [*frame.beginning, *frame.encode(document.text)[:_BEGINNING]]
