"""The model and the rows of token ids that `calibrate` is to make: checks them, and makes the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from g4convert.api.bundled import default_row_length
from g4convert.calibration.answers import Own, answer_questions
from g4convert.calibration.documents import Document, bundled_documents, hash_of_documents, read_documents
from g4convert.calibration.rows import Written
from g4convert.calibration.sampling import sample
from g4convert.calibration.tokens import Tokens
from g4convert.checkpoint import source
from g4convert.checkpoint.directory import Checkpoint
from g4convert.conversion.calibration_file import CalibrationFile
from g4convert.conversion.identity import Model, tokenizer_hash
from g4convert.devices import memory_faults, torch_device
from g4convert.errors import FormatError, InputError, UnsupportedError, UsageError
from g4convert.forward.conversations import Frame, frame_of
from g4convert.forward.load import load
from g4convert.forward.media import takes
from g4convert.forward.models import context_of, read_config
from g4convert.forward.patches import PictureCutter, reason_against
from g4convert.gemma4 import Architecture
from g4convert.planning.costs import ENDS
from g4convert.progress import Progress
from g4convert.quantities import plural

_FEWEST_TOKENS: Final = 16
"""Smallest number of tokens in a row."""
_MOST_SAMPLES: Final = 1 << 16
_LAST_SEED: Final = (1 << 63) - 1
"""Largest seed that torch takes."""


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """A model and the requested rows of token ids.

    Args:
        checkpoint: the model.
        architecture: what its config says.
        frame: its words.
        samples: rows, or None for as many as the texts fill.
        length: tokens of a row.
        seed: decides the order of texts, and answers.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    frame: Frame
    samples: int | None
    length: int
    seed: int

    @classmethod
    def of(cls, model: str, *, samples: int | None, length: int | None, seed: int) -> "CalibrationRequest":
        """Open a model, and hold the numbers against it; see `calibrate`."""
        directory = source.resolve(model).path
        checkpoint = Checkpoint.open(directory)
        architecture = Architecture.from_config(checkpoint.config)  # not a Gemma 4 checkpoint: said in its words
        if architecture.is_assistant:
            raise UnsupportedError(
                f"{directory}: a drafter ({architecture.model_type}), which reads another model's states, not text",
                hint="calibrate the model that it drafts for; a drafter is quantized without data",
            )
        config = read_config(directory)
        text = config.get_text_config()
        context = context_of(config)
        length = default_row_length(text.sliding_window) if length is None else length
        if not _FEWEST_TOKENS <= length <= context:
            raise UsageError(f"--length {length}: expected {_FEWEST_TOKENS} to {context:,}, the model's context")
        if samples is not None and not 2 <= samples <= _MOST_SAMPLES:
            raise UsageError(f"--samples {samples}: expected 2 to {_MOST_SAMPLES:,}: one of them judges")
        if not 0 <= seed <= _LAST_SEED:
            raise UsageError(f"--seed {seed}: expected 0 to {_LAST_SEED:,}")
        if not tokenizer_hash(directory):
            hint = "copy tokenizer.json from the model's repository"
            raise InputError(f"{directory}: no tokenizer.json, so texts have no ids", hint=hint)
        return cls(checkpoint, architecture, frame_of(directory, config), samples, length, seed)

    @property
    def facts(self) -> dict[str, Any]:
        """All facts, except the texts, that the ids depend on, as JSON."""
        model = Model.of(self.checkpoint).to_dict()
        return {"model": model, "samples": self.samples, "length": self.length, "seed": self.seed}

    def read_bundled(self) -> tuple[Document, ...]:
        """Return the bundled texts, with those about pictures if the model takes these and a row holds one."""
        return bundled_documents(pictures=not self._why_without_pictures())

    def read(self, data: str) -> tuple[Document, ...]:
        """Read the user's own texts; see `calibrate`."""
        documents = read_documents(data)
        with_pictures = [document.place for document in documents if document.pictures]
        if with_pictures and (why := reason_against(self.checkpoint.path, self.frame.config)):
            text = f"{data}: {plural(len(with_pictures), 'conversation')} with pictures, and {why}"
            raise InputError(text, hint=f"leave these lines out: {data}", offenders=with_pictures)
        return documents

    def check_questions(self, data: str, documents: Sequence[Document]) -> None:
        """Check that the model can answer the user's own questions: that each leaves room in its context.

        Texts without answers are cut into rows, and a base model continues beginnings: both fit.
        """
        context = context_of(self.frame.config)
        if not self.frame.chat:
            return
        long = []
        for document in documents:
            if document.pictures or 2 * len(document.text.encode()) <= context:  # a token is at least a byte
                continue
            length = len(self.frame.question(_messages_before_answer(document)))
            if length >= context:
                long.append(f"{document.place}: {length:,} tokens".removeprefix(": "))
        if long:
            what = f"{data}: questions longer than the model's context of {context:,} tokens"
            raise UsageError(what, hint="shorten them, or --no-answers takes the texts as they are", offenders=long)

    def _why_without_pictures(self) -> str:
        """Say why the bundled texts have no pictures for this model; empty if they have some."""
        if why := reason_against(self.checkpoint.path, self.frame.config):
            return why
        try:
            most = PictureCutter.of(self.checkpoint.path, self.frame.config).most_soft_tokens
        except (InputError, FormatError) as error:
            return error.message
        if self.length <= most + ENDS:
            return f"a sample of {self.length} holds no picture of {most} soft tokens"
        return ""

    def _describe_pictures(self, documents: Sequence[Document], tokens: Tokens) -> dict[str, Any]:
        """Return the entry of a calibration file about pictures; none for a model that takes no pictures."""
        if tokens.pictures is not None:
            return {"pictures": len(tokens.pictures)}
        if not takes(self.frame.config, "image"):
            return {}
        if any(document.pictures for document in documents):
            return {"pictures": "none: other texts fill the samples"}
        return {"pictures": f"none: {self._why_without_pictures() or 'the texts have none'}"}

    def make_file(self, documents: Sequence[Document], own: Own, device: str, progress: Progress) -> CalibrationFile:
        """Return a calibration file with the ids of the documents."""

        def answer(order: Sequence[Document], enough: int) -> list[Written]:
            with memory_faults():
                loaded = load(self.checkpoint.path, dtype="bfloat16", device=torch_device(device))
                return answer_questions(loaded, self.frame, order, enough=enough, seed=self.seed, progress=progress)

        tokenizer = tokenizer_hash(self.checkpoint.path)
        sampled = sample(
            documents,
            self.frame,
            samples=self.samples,
            length=self.length,
            seed=self.seed,
            tokenizer=tokenizer,
            answer=answer if own.answers else None,
            cutter=PictureCutter.of(self.checkpoint.path, self.frame.config)
            if any(document.pictures for document in documents)
            else None,
        )
        pictures = sampled.tokens.pictures
        texts = {
            "documents": sampled.documents,
            "kinds": dict(sampled.kinds),
            "chat_frame": self.frame.chat,
            "answers": f"{own.why}; those with pictures as they are" if own.answers and pictures else own.why,
            "seed": self.seed,
            "data": hash_of_documents(documents),
            **self._describe_pictures(documents, sampled.tokens),
        }
        model = Model.of(self.checkpoint)
        return CalibrationFile(sampled.tokens.ids, tokenizer, model, texts=texts, pictures=pictures)


def _messages_before_answer(document: Document) -> Sequence[Mapping[str, Any]]:
    """Return the messages before the answer in a document, if it has one."""
    *before, last = document.messages
    return before if before and last["role"] in {"assistant", "model"} else document.messages
