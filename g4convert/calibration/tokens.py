"""The token ids that calibrate: sequences of one length, and which of them judge.

The file is safetensors: `ids` int32 [samples, length], and in its metadata `sha256`, the hash of the ids' bytes
(little-endian, row after row), and `tokenizer`, the hash of the tokenizer.json that made them.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from g4convert.errors import InputError

__all__ = ["Tokens", "judges", "tokenizer_hash"]

_HINT = "`g4convert calibrate MODEL -o FILE` makes one"
_JUDGING = 0.05


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sequences of one length.

    Args:
        ids: int32 [samples, length].
        tokenizer: hash of the tokenizer that made them, `tokenizer_hash`; empty where it is not known.
    """

    ids: NDArray[np.int32]
    tokenizer: str = ""

    @classmethod
    def load(cls, path: Path, vocabulary: int, tokenizer: str = "") -> "Tokens":
        """Read them.

        Args:
            path: the file.
            vocabulary: ids lie below this.
            tokenizer: hash of the model's tokenizer; empty asks for none.

        Raises:
            InputError: not such a file, damaged, of fewer than two samples, of another tokenizer, or with ids outside
                the vocabulary.
        """
        try:
            with safe_open(path, "np") as file:
                ids, metadata = file.get_tensor("ids"), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a calibration file: {error}", hint=_HINT) from error
        if ids.dtype != np.int32 or ids.ndim != 2 or len(ids) < 2 or ids.shape[1] < 1:
            found = f"{ids.dtype} {[*ids.shape]}"
            raise InputError(f"{path}: ids are {found}, expected int32 [samples, length], two samples or more")
        tokens = cls(np.ascontiguousarray(ids), metadata.get("tokenizer", ""))
        if metadata.get("sha256") != tokens.hash:
            raise InputError(f"{path}: its ids do not have the hash it states: damaged", hint=_HINT)
        if tokens.tokenizer and tokenizer and tokens.tokenizer != tokenizer:
            raise InputError(f"{path}: its ids are of another tokenizer than the model's", hint=_HINT)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise InputError(
                f"{path}: id {wrong} is outside the model's vocabulary of {vocabulary}: of another tokenizer",
                hint=_HINT,
            )
        return tokens

    def save(self, path: Path) -> None:
        """Write them."""
        named = {"tokenizer": self.tokenizer} if self.tokenizer else {}
        save_file({"ids": self.ids}, path, metadata={"sha256": self.hash, **named})

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
        """Return the SHA-256 of the ids."""
        return sha256(self.ids.astype("<i4").tobytes()).hexdigest()

    @property
    def judges(self) -> frozenset[int]:
        """The sequences that no sum sees."""
        return judges(self.samples)


def judges(samples: int) -> frozenset[int]:
    """Return which of so many sequences judge: 5 % of them, at least one, spread evenly."""
    count = max(1, round(_JUDGING * samples))
    step = samples / count
    return frozenset(int((number + 1) * step) - 1 for number in range(count))


def tokenizer_hash(directory: Path) -> str:
    """Return the sha256 of a checkpoint's tokenizer.json; empty where it has none."""
    path = directory / "tokenizer.json"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
