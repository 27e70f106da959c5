"""`g4convert generate`: answers of a checkpoint, for a person to read.

    prompt -> the checkpoint's own chat frame -> ids -> strict loader, packed weights -> ids -> text, as it comes

A smoke test, not a server: it runs one prompt after the other with greedy decoding, so the same command gives the same
answers. A checkpoint must pass the strict loader, and packed weights stay packed, as in `verify --level logits`. Models
without a chat template are base models and get BOS and the bare prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self, cast

import torch

from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import device_of, memory_faults, threads_for, torch_device
from g4convert.errors import UsageError
from g4convert.forward.conversations import Frame, frame_of
from g4convert.forward.decoding import end_tokens, greedy
from g4convert.forward.load import DTypeName, Memory, load
from g4convert.forward.models import Model, context_of, dtype_name
from g4convert.forward.streaming import stream_of
from g4convert.forward.tuning import tune
from g4convert.progress import Progress, peak_memory
from g4convert.request import DEFAULTS, SPEECH_DTYPE
from g4convert.run_options import check_run

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""Decoded text of an incomplete character's bytes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt.

    Args:
        prompt: the user's prompt.
        prompt_ids: ids of the prompt in its chat frame.
        token_ids: ids of the answer, the ending one included.
        text: text of the answer, without special tokens.
        ended: whether the model ended the answer; False if `max_new_tokens` or the end of the context cut it.
        is_full: whether prompt and answer fill the model's context.
        prefill_seconds: seconds up to the first token.
        decode_seconds: seconds after the first token.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    ended: bool
    is_full: bool
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first token; None if there is only one."""
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
    """A loaded model and its tokenizer.

    Args:
        model: model from `forward.load.load`.
        frame: tokenizer and chat template of the checkpoint.
        load_seconds: seconds that loading took.
    """

    model: Model
    frame: Frame
    load_seconds: float

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = DEFAULTS.device,
        memory: Memory = DEFAULTS.memory.value,
        dtype: str = SPEECH_DTYPE,
    ) -> Self:
        """Load a checkpoint.

        Args:
            checkpoint: the checkpoint, plain or packed; see `checkpoint.uses.open_for_generation`.
            device: `cpu`, `cuda` or `cuda:N`.
            memory: `resident`, `stream` or `auto`; a streamed model reads all weights for each token.
            dtype: dtype of the forward, `float32` or `bfloat16`.

        Raises:
            UsageError: the device or dtype is unknown.
            GateError: a tensor does not fit the model.
            EnvironmentFault: no such GPU, or not enough memory.
        """
        check_run(dtype=dtype)
        where = torch_device(device)
        begin = perf_counter()
        with memory_faults():
            model = load(checkpoint, dtype=cast("DTypeName", dtype), memory=memory, device=where)
        return cls(model, frame_of(checkpoint.path, model.config), perf_counter() - begin)

    def tune(self, path: Path, progress: Progress | None = None) -> int:
        """Measure the GPU's kernels on this model, and write the table; see `forward.tuning.tune`."""
        with memory_faults():
            return tune(self.model, path, progress=progress)

    def answer(self, prompt: str, *, max_new_tokens: int, show: Callable[[str], None] = lambda _: None) -> Answer:
        """Answer a prompt.

        Args:
            prompt: a question; for a base model the beginning of a text.
            max_new_tokens: most tokens of the answer, which the model's context ends at the latest.
            show: called with each new piece of the text.

        Raises:
            UsageError: the prompt is longer than the model's context.
            GateError: a logit is not finite.
            EnvironmentFault: not enough memory.
        """
        ids, most = self._encode_prompt(prompt), context_of(self.model.config)
        if len(ids) >= most:
            raise UsageError(f"a prompt of {len(ids):,} tokens: the model's context has {most:,}", hint="shorten it")
        text = _Growing(self.frame.tokenizer, show)
        begin = first = perf_counter()
        with memory_faults(), threads_for(self.model):
            for token in greedy(self.model, ids, max_new_tokens=max_new_tokens):
                first = first if text.ids else perf_counter()
                text.add(token)
        end = perf_counter()
        new_ids, times = tuple(text.ids), (first - begin, end - first)
        ended, is_full = new_ids[-1] in end_tokens(self.model), len(ids) + len(new_ids) >= most
        return Answer(prompt, tuple(ids), new_ids, text.close(), ended, is_full, *times)

    def _encode_prompt(self, prompt: str) -> Sequence[int]:
        if self.frame.chat:
            return self.frame.question([{"role": "user", "content": prompt}])
        return [*self.frame.beginning, *self.frame.encode(prompt)]

    def to_dict(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the answers and their times, as JSON."""
        device = device_of(self.model)
        return {
            "schema_version": 1,
            "device": str(device),
            "dtype": dtype_name(self.model),
            "memory": "resident" if stream_of(self.model) is None else "stream",
            "load_seconds": self.load_seconds,
            "peak_memory": _peak(device),
            "answers": [answer.to_dict() for answer in answers],
        }


class _Growing:
    """A text that grows by tokens; a character is shown once all its bytes are decoded."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:  # noqa: ANN401 -- transformers has no types
        self.ids: list[int] = []
        self._tokenizer, self._show = tokenizer, show
        self._shown = 0

    def add(self, token: int) -> None:
        self.ids.append(token)
        self._show_up_to(self._text().rstrip(_INCOMPLETE))

    def close(self) -> str:
        """Show the rest and return the whole text."""
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
    """Return peak memory in bytes: torch's allocations on a GPU, the process's memory on the CPU."""
    return peak_memory() if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
