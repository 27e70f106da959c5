"""Token ids for calibration: sequences of one length, some of which judge. See `conversion.calibration_file`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from g4convert.array_types import I32
from g4convert.checkpoint.directory import Checkpoint
from g4convert.checkpoint.gguf import is_gguf
from g4convert.conversion.calibration_file import CalibrationFile, check_model, hash_of_ids
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
        tokenizer: hash of the tokenizer that made the ids, see `tokenizer_hash`; empty if unknown.
        kinds: number of ids by kind of text; empty if unknown.
    """

    ids: I32
    tokenizer: str = ""
    kinds: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, vocabulary: int, checkpoint: Checkpoint | None = None) -> "Tokens":
        """Read the ids of a calibration file.

        Args:
            path: the file.
            vocabulary: size of the vocabulary; every id must be below it.
            checkpoint: model whose hash and tokenizer the file must match; None skips this check.

        Raises:
            InputError: the file is no calibration file, is damaged, has fewer than two samples or no ids, is of another
                model or tokenizer, or has ids outside the vocabulary.
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
        return cls(file.ids, file.tokenizer, file.kinds)

    def save(self, path: Path) -> None:
        """Write a calibration file with only the ids and the tokenizer's hash."""
        CalibrationFile(self.ids, self.tokenizer).save(path)

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
        """SHA-256 of the ids."""
        return hash_of_ids(self.ids)

    @property
    def judges(self) -> frozenset[int]:
        """Numbers of the sequences that judge and are in no sum."""
        return judges(self.samples)


def _check_tokenizer(path: Path, found: str, expected: str) -> None:
    """Raise if the ids are of another tokenizer and both tokenizers are known."""
    if found and expected and found != expected:
        text = f"{path}: ids of another tokenizer: {found[:12]}, expected {expected[:12]} (sha256 of tokenizer.json)"
        raise InputError(text, hint=_HINT)


def judges(samples: int) -> frozenset[int]:
    """Return the numbers of the judging sequences: 5 % of `samples`, at least one, spread evenly."""
    count = max(1, round(_JUDGING * samples))
    step = samples / count
    return frozenset(int((number + 1) * step) - 1 for number in range(count))


def held_out(samples: int) -> frozenset[int]:
    """Return the sequences held out of the training of scales: a fifth of `samples`, the judging ones among them."""
    found = judges(samples)
    rest = (s for s in range(samples) if s not in found)
    mixed = sorted(rest, key=lambda s: (s + 1) * _GOLDEN % 1)  # neither neighbours nor equally spaced
    return found | frozenset(mixed[: max(0, round(_HELD_OUT * samples) - len(found))])


def tokenizer_hash(directory: Path) -> str:
    """Return the sha256 of a checkpoint's tokenizer.json; empty if the file is missing."""
    path = directory / "tokenizer.json"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
