"""`g4convert.calibrate`: token ids to calibrate on, from texts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from g4convert.calibration.answers import answered, decided
from g4convert.calibration.documents import Document, bundled, read_documents
from g4convert.calibration.rows import Written
from g4convert.calibration.sampling import Sampled, sample
from g4convert.calibration.tokens import tokenizer_hash
from g4convert.checkpoint import source
from g4convert.checkpoint.directory import Checkpoint
from g4convert.devices import memory_faults, torch_device
from g4convert.errors import InputError, UsageError
from g4convert.forward.conversations import frame_of
from g4convert.forward.load import load
from g4convert.forward.models import quiet_transformers
from g4convert.gemma4 import Architecture
from g4convert.progress import Quiet

__all__ = ["Calibrated", "calibrate"]

_FEWEST = 16
"""Least tokens of a row."""
_LONG = 2048
"""Most tokens of a row where no number is asked for."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration file that was written.

    Args:
        output: the file.
        sampled: its rows, and what they are made of.
        chat: whether texts were put into the model's chat frame.
        answers: who gave the answers, in words.
    """

    output: Path
    sampled: Sampled
    chat: bool
    answers: str

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON, as `g4convert calibrate --json` prints it."""
        tokens = self.sampled.tokens
        return {
            "schema_version": 1,
            "output": str(self.output),
            "samples": tokens.samples,
            "length": tokens.length,
            "tokens": tokens.samples * tokens.length,
            "judging": len(tokens.judges),
            "documents": self.sampled.documents,
            "kinds": dict(self.sampled.kinds),
            "chat_frame": self.chat,
            "answers": self.answers,
            "sha256": tokens.hash,
        }


def calibrate(  # noqa: PLR0913 -- the choices of a sample
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    answers: bool | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Quiet | None = None,
) -> Calibrated:
    """Make a calibration file for the recipes that look at what a model reads. Weights are read only for own answers.

    Args:
        model: a directory, or `org/name[@revision]` on the Hugging Face hub.
        output: the .safetensors file; it appears when everything is in it.
        data: texts: a .jsonl or .txt file, or a dataset as `org/name[:split]`; None takes the bundled ones.
        samples: rows of ids; None makes as many as the texts fill, 128 at most.
        length: tokens of a row; None takes twice the sliding window, 2,048 at most.
        seed: decides the order of texts, and answers.
        answers: whether the model answers the questions itself, at temperature 1; None lets a chat model that fits the
            memory, on a GPU or of at most 1 GiB.
        device: what answers: `cpu`, `cuda` or `cuda:N`.
        overwrite: replace a file that is there.
        progress: told of answered ids; a subclass of `g4convert.progress.Quiet`.

    Returns:
        The file, and what its rows are made of.

    Raises:
        UsageError: the file is there already or has another ending, a number is out of range, or answers are asked of
            a model that does not fit the memory.
        InputError: no such model, no tokenizer, no such texts, or too few of them.
        GateError: the tensors of a model that answers are not its own, or a logit is not finite.
        EnvironmentFault: the model or the dataset cannot be fetched, no such device, or not enough memory.
    """
    path = Path(output)
    _check_place(path, overwrite=overwrite)
    directory = source.resolve(os.fspath(model)).path
    checkpoint = Checkpoint.open(directory)
    Architecture.from_config(checkpoint.config)  # not a Gemma 4 checkpoint: said in its words
    with quiet_transformers():
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    text = config.get_text_config()
    most, length = text.max_position_embeddings, length or min(2 * text.sliding_window, _LONG)
    if not _FEWEST <= length <= most:
        raise UsageError(f"--length {length}: expected {_FEWEST} to {most:,}, the model's context")
    if samples is not None and samples < 2:
        raise UsageError(f"--samples {samples}: expected 2 or more: one of them judges")
    if not tokenizer_hash(directory):
        raise InputError(f"{directory}: no tokenizer.json, so texts have no ids", hint="copy the model's own")
    documents = bundled() if data is None else read_documents(os.fspath(data))
    frame = frame_of(directory, config)
    where = torch_device(device)
    own = decided(checkpoint, where, chat=frame.chat, asked=answers)

    def answer(order: Sequence[Document], enough: int) -> list[Written]:
        with memory_faults():
            loaded = load(directory, dtype="bfloat16", device=where)
            return answered(loaded, frame, order, enough=enough, seed=seed, progress=progress or Quiet())

    sampled = sample(
        documents,
        frame,
        samples=samples,
        length=length,
        seed=seed,
        tokenizer=tokenizer_hash(directory),
        answer=answer if own.answers else None,
    )
    partial = path.with_name(f"{path.name}.partial")
    try:
        sampled.tokens.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Calibrated(path, sampled, frame.chat, own.why)


def _check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a calibration file ends in .safetensors", hint=f"-o {path.name}.safetensors")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path}: is there already", hint="name another file, or pass --overwrite")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such directory")
