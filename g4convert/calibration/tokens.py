"""Token ids for calibration: sequences of one length, some of which judge. See `conversion.calibration_file`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from g4convert.array_types import I32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.gguf import is_gguf
from g4convert.conversion.calibration_file import CalibrationFile, check_model, hash_of_tokens
from g4convert.conversion.identity import tokenizer_hash
from g4convert.conversion.pictures import Pictures
from g4convert.errors import InputError

_HINT: Final = "`g4convert calibrate MODEL -o FILE` makes one"
_JUDGING: Final = 0.05
"""Share of the samples that judge."""
_HELD_OUT: Final = 0.2
"""Share of the samples held out of the training of scales."""
_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sequences of one length.

    Args:
        ids: int32 [samples, length].
        tokenizer: hash of the tokenizer that made the ids, see `identity.tokenizer_hash`; empty if unknown.
        kinds: number of ids by kind of text; empty if unknown.
        pictures: pictures of the sequences, in the order of their placeholders; None if there are none.
    """

    ids: I32
    tokenizer: str = ""
    kinds: Mapping[str, int] = field(default_factory=dict)
    pictures: Pictures | None = None

    @classmethod
    def load(cls, path: Path, vocabulary: int, checkpoint: Checkpoint | None = None) -> "Tokens":
        """Read the ids of a calibration file.

        Args:
            path: the file.
            vocabulary: size of the vocabulary; every id must be below it.
            checkpoint: model whose hash and tokenizer the file must match; None skips this check.

        Raises:
            InputError: the file is no calibration file, is damaged, has fewer than two samples or no ids, is of another
                model or tokenizer, or has ids outside the vocabulary, or pictures that do not fit model or ids.
        """
        if is_gguf(path):
            text = f"{path}: an importance matrix, which has no token ids to calibrate on"
            raise InputError(text, hint="-r w4a16-g32-imatrix uses it")
        file = CalibrationFile.load(path)
        if checkpoint is not None:
            check_model(path, file.model, checkpoint)
            _check_tokenizer(path, file.tokenizer, tokenizer_hash(checkpoint.path))
        outside = file.ids[(file.ids < 0) | (file.ids >= vocabulary)]
        if len(outside):
            found = f"{len(outside):,} of {file.ids.size:,} ids, such as {outside[0]},"
            text = f"{path}: {found} are outside the model's vocabulary of {vocabulary:,}: of another tokenizer"
            raise InputError(text, hint=_HINT)
        if checkpoint is not None and file.pictures is not None:
            _check_pictures(path, file, checkpoint.config)
        return cls.of(file)

    @classmethod
    def of(cls, file: CalibrationFile) -> "Tokens":
        """Return the tokens of a calibration file."""
        return cls(file.ids, file.tokenizer, file.kinds, file.pictures)

    def save(self, path: Path) -> None:
        """Write a calibration file with only the ids, their pictures and the tokenizer's hash."""
        CalibrationFile(self.ids, self.tokenizer, pictures=self.pictures).save(path)

    def without(self, rows: Collection[int]) -> "Tokens":
        """Return the other sequences, with their pictures."""
        if not rows:
            return self
        shown = None if self.pictures is None else self.pictures.without(rows, self.samples)
        return Tokens(np.delete(self.ids, sorted(rows), axis=0), self.tokenizer, pictures=shown)

    @property
    def pictured(self) -> frozenset[int]:
        """Numbers of the sequences with pictures."""
        return frozenset() if self.pictures is None else self.pictures.in_rows

    @property
    def samples(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return int(self.ids.shape[1])

    @property
    def hash(self) -> str:
        """SHA-256 of the ids and pictures."""
        return hash_of_tokens(self.ids, self.pictures)

    @property
    def judges(self) -> frozenset[int]:
        """Numbers of the sequences that judge and are in no sum."""
        return judges(self.samples)


def _check_tokenizer(path: Path, found: str, expected: str) -> None:
    """Raise if the ids are of another tokenizer and both tokenizers are known."""
    if found and expected and found != expected:
        text = f"{path}: ids of another tokenizer: {found[:12]}, expected {expected[:12]} (sha256 of tokenizer.json)"
        raise InputError(text, hint=_HINT)


def _check_pictures(path: Path, file: CalibrationFile, config: Mapping[str, Any]) -> None:
    """Raise if the model takes no pictures, or others, or the ids have other numbers of placeholders."""
    vision, pictures = config.get("vision_config"), file.pictures
    if pictures is None:
        return
    if not vision:
        raise InputError(f"{path}: {len(pictures)} pictures, and the model takes none", hint=_HINT)
    k = int(vision.get("pooling_kernel_size", 3))
    unified = config.get("model_type") == "gemma4_unified"
    side = int(vision.get("patch_size", 16)) * (k if unified else 1)
    if pictures.pixels.shape[1] != 3 * side**2:
        text = f"patches of {pictures.pixels.shape[1]:,} values, the model's have {3 * side**2:,}"
        raise InputError(f"{path}: {text}", hint=_HINT)
    counts = np.zeros(len(file.ids), np.int64)
    np.add.at(counts, pictures.rows[:, 0], pictures.rows[:, 1])
    there = (file.ids == config.get("image_token_id")).sum(axis=1)
    for row in sorted(pictures.in_rows):
        wanted = int(counts[row]) // (1 if unified else k * k)
        if there[row] != wanted:
            text = f"row {row} has {there[row]} placeholders for pictures of {wanted} soft tokens"
            raise InputError(f"{path}: {text}", hint=_HINT)


def judges(samples: int) -> frozenset[int]:
    """Return the numbers of the judging sequences: 5 % of `samples`, at least one, spread evenly."""
    count = max(1, round(_JUDGING * samples))
    step = samples / count
    return frozenset(int((number + 1) * step) - 1 for number in range(count))


def held_out_samples(samples: int) -> frozenset[int]:
    """Return the sequences held out of the training of scales: a fifth of `samples`, `judges(samples)` among them.

    The training counts the sequences without pictures, so with pictures in a file these are not the ones that judge in
    it.
    """
    found = judges(samples)
    rest = (s for s in range(samples) if s not in found)
    mixed = sorted(rest, key=lambda s: (s + 1) * _GOLDEN % 1)  # neither neighbours nor equally spaced
    return found | frozenset(mixed[: max(0, round(_HELD_OUT * samples) - len(found))])
