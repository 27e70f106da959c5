"""`g4convert generate`: what a checkpoint says, for a person to read.

    prompt -> the checkpoint's own chat frame -> ids -> strict loader, packed weights -> ids -> text, as it comes

A smoke test, not a server: one prompt after the other, greedy, so the same command says the same again. What the
strict loader refuses is not run, and weights that are packed stay packed, as in `verify --level logits`. Models
without a chat template are base models and get the prompt as it is, after the token that begins a text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self, cast

import torch

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import device_of, memory_faults, threads_for, torch_device
from g4convert.errors import InputError, UnsupportedError
from g4convert.forward.conversations import Frame, frame_of
from g4convert.forward.greedy import ends, greedy
from g4convert.forward.load import DTypeName, Memory, load
from g4convert.forward.models import Model
from g4convert.forward.streaming import stream_of
from g4convert.forward.tuning import tune
from g4convert.progress import peak_memory
from g4convert.request import DEFAULTS, FLOAT_TYPES, SPEECH_DTYPE
from g4convert.suggestions import no_such

__all__ = ["Answer", "Speaker"]

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""The text that bytes of an incomplete character decode to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt.

    Args:
        prompt: as the user wrote it.
        prompt_ids: with its frame.
        token_ids: tokens of the answer, with the one that ended it.
        text: text of the answer, without special tokens.
        ended: whether the model ended it; False where `max_new_tokens` did.
        prefill_seconds: up to the first token.
        decode_seconds: from there on.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    ended: bool
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None of an answer that has no more."""
        return (len(self.token_ids) - 1) / self.decode_seconds if len(self.token_ids) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON."""
        return {
            "prompt": self.prompt,
            "prompt_ids": [*self.prompt_ids],
            "token_ids": [*self.token_ids],
            "text": self.text,
            "ended": self.ended,
            "prefill_seconds": self.prefill_seconds,
            "tokens_per_second": self.tokens_per_second,
        }


@dataclass(frozen=True, slots=True)
class Speaker:
    """A loaded model and its words.

    Args:
        model: as `load` gives it.
        frame: the checkpoint's frame; has a tokenizer.
        load_seconds: seconds that loading took.
    """

    model: Model
    frame: Frame
    load_seconds: float

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = DEFAULTS.device,
        memory: Memory = DEFAULTS.memory.value,
        dtype: str = SPEECH_DTYPE,
    ) -> Self:
        """Load a checkpoint, plain or packed.

        Args:
            directory: the checkpoint.
            device: `cpu`, `cuda` or `cuda:N`.
            memory: `resident`, `stream` or `auto`; streamed, each token reads all weights again.
            dtype: dtype of the forward, `float32` or `bfloat16`.

        Raises:
            UsageError: not such a device or dtype.
            InputError: not a Gemma 4 checkpoint, no tokenizer, or a drafter.
            GateError: its tensors are not those of the model.
            EnvironmentFault: no such GPU, or not enough memory.
        """
        if dtype not in FLOAT_TYPES:
            raise no_such("--dtype", dtype, FLOAT_TYPES)
        where = torch_device(device)
        _check(directory)
        begin = perf_counter()
        with memory_faults():
            model = load(directory, dtype=cast("DTypeName", dtype), memory=memory, device=where)
        return cls(model, frame_of(directory, model.config), perf_counter() - begin)

    def tune(self, path: Path, tell: Callable[[int, int, str], None] = lambda *_: None) -> int:
        """Measure the GPU's kernels on this model, and write the table; see `forward.tuning.tune`."""
        with memory_faults():
            return tune(self.model, path, tell=tell)

    def answer(self, prompt: str, *, max_new_tokens: int, show: Callable[[str], None] = lambda _: None) -> Answer:
        """Let it answer.

        Args:
            prompt: a question, or of a base model the beginning of a text.
            max_new_tokens: the longest answer.
            show: given the text, piece by piece, as it comes.

        Raises:
            GateError: a logit is not finite.
            EnvironmentFault: not enough memory.
        """
        ids = self._framed(prompt)
        text = _Growing(self.frame.tokenizer, show)
        begin = first = perf_counter()
        with memory_faults(), threads_for(self.model):
            for token in greedy(self.model, ids, max_new_tokens=max_new_tokens):
                first = first if text.ids else perf_counter()
                text.add(token)
        end = perf_counter()
        said = tuple(text.ids)
        return Answer(prompt, tuple(ids), said, text.close(), said[-1] in ends(self.model), first - begin, end - first)

    def _framed(self, prompt: str) -> Sequence[int]:
        if self.frame.chat:
            return self.frame.question([{"role": "user", "content": prompt}])
        first = self.frame.tokenizer.bos_token_id
        return [*([] if first is None else [first]), *self.frame.encode(prompt)]

    def to_dict(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the answers and their times, as JSON."""
        device = device_of(self.model)
        return {
            "schema_version": 1,
            "device": str(device),
            "dtype": str(self.model.config.dtype).removeprefix("torch."),
            "memory": "resident" if stream_of(self.model) is None else "stream",
            "load_seconds": self.load_seconds,
            "peak_memory": _peak(device),
            "answers": [answer.to_dict() for answer in answers],
        }


def _check(directory: Path) -> None:
    """Refuse what can be refused before any work."""
    kind = str(Checkpoint.open(directory).config.get("model_type"))
    if kind.endswith("assistant"):
        raise UnsupportedError(
            f"{directory}: a drafter ({kind}) says nothing itself: it guesses tokens from another model's states",
            hint="generate with the model that it drafts for; `g4convert verify` judges drafters",
        )
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory}: no tokenizer.json, so it has no words", hint="copy the model's own")


class _Growing:
    """A text that grows by tokens; a character is shown when all its bytes are there."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:  # noqa: ANN401 -- transformers has no types
        self.ids: list[int] = []
        self._tokenizer, self._show = tokenizer, show
        self._shown = 0

    def add(self, token: int) -> None:
        self.ids.append(token)
        self._show_up_to(self._text().rstrip(_INCOMPLETE))

    def close(self) -> str:
        """Show what is left; the whole text."""
        text = self._text()
        self._show_up_to(text)
        return text

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _show_up_to(self, text: str) -> None:
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)


def _peak(device: torch.device) -> int:
    """Return bytes: on a GPU those that torch has allocated there, on the CPU those that the process has held."""
    return peak_memory() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
